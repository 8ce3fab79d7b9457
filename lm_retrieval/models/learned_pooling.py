"""Learned pooling: what turns a language model's hidden states into a vector made for retrieval.

A text's vector is A·(s - μ)/σ + Σₜ w[xₜ]·E[xₜ] / Σₜ w[xₜ] over its tokens x. The token vectors E, each token weighted
by a w of its own (frequent words little, rare words much), carry which words occur; s, the mean of the language
model's hidden states under the same weights, carries what the words mean together. μ and σ only condition the
training: the states of all texts have most of their length in common.

Shapes: B texts, T tokens (padded on the right), D hidden, E dimensions of a vector, V vocabulary.
"""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

_MEAN_RATE = 0.02


class LearnedPooling(nn.Module):
    """Token weights, token vectors and a projection of the hidden states."""

    def __init__(self, *, vocab_size: int, hidden_dim: int, dim: int) -> None:
        """Starts as a plain mean of (zero) token vectors; give it a start before training."""
        super().__init__()
        self.dim = dim
        self.log_weights = nn.Parameter(torch.zeros(vocab_size))  # (V,)
        self.token_vectors = nn.Parameter(torch.zeros(vocab_size, dim))  # (V, E)
        self.projection = nn.Parameter(torch.zeros(dim, hidden_dim))  # (E, D)
        self.state_mean = nn.Parameter(torch.zeros(hidden_dim), requires_grad=False)
        self.state_scale = nn.Parameter(torch.ones(hidden_dim), requires_grad=False)

    def forward(self, hidden: Tensor | None, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) hidden, (B, T) ids, (B,) true lengths → (B, E) float32; no tokens give the zero vector.

        Without hidden states (None) only the words count.
        """
        weights = self.weights(token_ids, lengths)
        with torch.autocast(token_ids.device.type, enabled=False):
            table = self.token_vectors
            words = functional.embedding_bag(token_ids, table, per_sample_weights=weights.to(table.dtype), mode="sum")
            if hidden is None:
                return words.float()
            states = functional.linear(self.normalized_states(hidden, weights), self.projection.float())
        return (states + words.float()) * (lengths > 0)[:, None]

    def weights(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) float32 share of each token in its text; they add up to 1."""
        mask = torch.arange(token_ids.shape[1], device=token_ids.device) < lengths[:, None]
        weights = self.log_weights[token_ids].float().exp() * mask
        return weights / weights.sum(1, keepdim=True).clamp(min=1e-9)

    def mean_states(self, hidden: Tensor, weights: Tensor) -> Tensor:
        """(B, T, D) hidden and (B, T) float32 weights → (B, D) float32.

        Weights rounded to bfloat16 would change one of a hundred of the ten best documents.
        """
        return torch.bmm(weights[:, None], hidden.float())[:, 0]

    def normalized_states(self, hidden: Tensor, weights: Tensor) -> Tensor:
        """(B, D) float32 mean states, about 0 on average and 1 in spread.

        μ follows the states while they are trained: what all texts have in common tells none from another, and
        would otherwise grow into most of every vector.
        """
        states = self.mean_states(hidden, weights)
        normalized = (states - self.state_mean.float()) / self.state_scale.float()
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.state_mean.lerp_(_mean_of_all(states).to(self.state_mean), _MEAN_RATE)
        return normalized


def _mean_of_all(states: Tensor) -> Tensor:
    """(B, D) → (D,) mean over the rows of all processes that train together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return states.mean(0)
    total = torch.cat((states.sum(0), states.new_tensor([len(states)])))
    distributed.all_reduce(total)
    return total[:-1] / total[-1]
