"""Cross-entropy through the output layer in chunks, so that (N, V) float32 logits never exist at once.

Shapes: N tokens in a row, D hidden, V vocabulary, C tokens of a chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_CHUNK_SCORES = 1 << 21  # logits held at once (8 MiB in float32): small enough to stay in a CPU's cache
_GPU_CHUNK_SCORES = 1 << 25


def token_nll(hidden: Tensor, targets: Tensor, *, head: nn.Linear | None) -> Tensor:
    """(N, D) hidden, (N,) targets → (N,) negative log-likelihoods in nats, float32, no gradient."""
    with torch.no_grad():
        width = hidden.shape[-1] if head is None else head.out_features
        losses = [
            functional.cross_entropy(
                (hidden[rows] if head is None else head(hidden[rows])).float(), targets[rows], reduction="none"
            )
            for rows in _chunks(len(targets), width, hidden.device)
        ]
        return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)


def linear_cross_entropy(hidden: Tensor, targets: Tensor, *, head: nn.Linear | None) -> Tensor:
    """Mean cross-entropy of (N, D) hidden states against (N,) targets, in nats.

    Loss and gradients of a chunk are computed together and its logits thrown away, so that memory grows with N·D
    instead of N·V (the idea of Wijmans et al., 2024, arXiv:2411.09009, without custom kernels).
    """
    if head is None:
        return functional.cross_entropy(hidden.float(), targets)
    device_type = hidden.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype
    loss = _LinearCrossEntropy.apply(hidden, head.weight, head.bias, targets, dtype)  # type: ignore[no-untyped-call]
    assert isinstance(loss, Tensor)
    return loss


def _chunks(count: int, width: int, device: torch.device) -> Iterator[slice]:
    size = max(1, (_CHUNK_SCORES if device.type == "cpu" else _GPU_CHUNK_SCORES) // width)
    for start in range(0, count, size):
        yield slice(start, start + size)


def _nll(probabilities: Tensor, logits: Tensor, picked: Tensor) -> Tensor:
    """(C, 1) probabilities of the picked tokens → their negative logarithms, also of those too small for a float32."""
    nll = -probabilities.log()
    lost = probabilities[:, 0] < torch.finfo(torch.float32).tiny
    if lost.any():
        scores = logits[lost].float()
        nll[lost] = scores.logsumexp(1, keepdim=True) - scores.gather(1, picked[lost])
    return nll


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype
    ) -> Tensor:
        count = len(targets)
        cast_weight = weight.to(dtype)
        total = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(count, len(weight), hidden.device):
                chunk = hidden[rows].to(dtype)  # (C, D)
                logits = functional.linear(chunk, cast_weight, None if bias is None else bias.to(dtype))  # (C, V)
                # one exponential per score: the loss is read off the probabilities, which become the gradient of the
                # summed loss in place; dividing by the count waits until the gradients are float32 again, or float16
                # would lose the small ones
                grad = torch.softmax(logits, dim=1, dtype=torch.float32)
                picked = targets[rows, None]
                probabilities = grad.gather(1, picked)
                total += _nll(probabilities, logits, picked).sum()
                grad.scatter_(1, picked, probabilities - 1)
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                cast_grad = grad.to(dtype)
                grad_hidden[rows] = (cast_grad @ cast_weight).to(hidden.dtype)
                grad_weight += (cast_grad.T @ chunk).float()
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.count = count
        return total / count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0] / ctx.count
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return (
            (grad_hidden.float() * scale).to(grad_hidden.dtype),
            grad_weight * scale,
            None if grad_bias is None else grad_bias * scale,
            None,
            None,
        )
