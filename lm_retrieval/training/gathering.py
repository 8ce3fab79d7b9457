"""Rows of a micro-batch that several processes share out: gathered from all of them, with gradients.

The loss of a process is the mean over its own rows, against the rows of all. What another process's loss asks of a
row flows back to the process that computed it, so that the mean of all gradients, which is what
DistributedDataParallel makes of them, is the gradient of the mean over all rows: the one of a single process.

Shapes: B pairs of the micro-batch, b of one process (equally many for each), N documents of the micro-batch (the B
positives first), n of one process.
"""

from typing import Any

import torch
from torch import Tensor, distributed

from lm_retrieval.training.processes import rank, together, told_numbers


class Gathering:
    """How the pairs of a micro-batch are shared out; alone a process has all of them.

    Attributes:
        rows: (b,) places of this process's pairs among all; None where it has them all.
        processes: how many share the micro-batch.
    """

    def __init__(self, *, pairs: int, documents: int, device: torch.device) -> None:
        """Asks the other processes how many documents they have: all must come here."""
        self._documents = [int(count) for (count,) in told_numbers([documents])]
        self.processes = len(self._documents)
        self._pairs = [pairs] * self.processes
        self.rows: Tensor | None = None
        if together():
            self.rows = torch.arange(rank() * pairs, (rank() + 1) * pairs, device=device)

    def pairs(self, part: Tensor) -> Tensor:
        """(b, …) of this process → (B, …)."""
        return part if self.rows is None else _gathered(part, self._pairs)

    def documents(self, part: Tensor) -> Tensor:
        """(n, …) of this process → (N, …): all positives, then all negatives."""
        if self.rows is None:
            return part
        parts = torch.split(_gathered(part, self._documents), self._documents)
        border = self._pairs[0]
        return torch.cat([item[:border] for item in parts] + [item[border:] for item in parts])

    def own_documents(self, part: Tensor) -> Tensor:
        """(N, …) of all → (n, …) of this process."""
        if self.rows is None:
            return part
        pairs, total = self._pairs[0], sum(self._pairs)
        first = total + sum(count - pairs for count in self._documents[: rank()])
        return torch.cat((part[self.rows], part[first : first + self._documents[rank()] - pairs]))


def _gathered(part: Tensor, counts: list[int]) -> Tensor:
    gathered = _Gather.apply(part, counts)  # type: ignore[no-untyped-call]
    assert isinstance(gathered, Tensor)
    return gathered


class _Gather(torch.autograd.Function):
    """Rows of all processes, in the order of their numbers; some may have fewer than others."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = part.new_zeros((max(counts), *part.shape[1:]))
        padded[: len(part)] = part
        received = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(received, padded)
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        asked = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(asked)
        return torch.split(asked, ctx.counts)[rank()], None
