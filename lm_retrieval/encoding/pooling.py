"""From one hidden state per token to one vector per text.

Shapes: B texts, T tokens (padded on the right), D hidden.
"""

import torch
from torch import Tensor

from lm_retrieval.config import Pooling


def pool(hidden: Tensor, lengths: Tensor, *, mode: Pooling) -> Tensor:
    """(B, T, D) hidden states and (B,) true lengths → (B, D) float32.

    The names are sentence-transformers': `mean`; `weightedmean` (weights 1, 2, …: later tokens have seen more,
    Muennighoff 2022, arXiv:2202.08904); `max`; `lasttoken`; `mean_sqrt_len_tokens` (sum over √length). A text without
    tokens becomes the zero vector.
    """
    hidden = hidden.float()
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    mask = positions < lengths[:, None]  # (B, T)
    if mode == "max":
        highest = hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)
        return torch.where(lengths[:, None] > 0, highest, torch.zeros_like(highest))
    if mode == "lasttoken":
        last = hidden[torch.arange(len(hidden), device=hidden.device), (lengths - 1).clamp(min=0)]
        return torch.where(lengths[:, None] > 0, last, torch.zeros_like(last))
    weights = mask.float()
    if mode == "weightedmean":
        weights = weights * (positions + 1)
    total = torch.einsum("btd,bt->bd", hidden.masked_fill(~mask[..., None], 0.0), weights)
    norm = weights.sum(1, keepdim=True).clamp(min=1.0)
    return total / (norm.sqrt() if mode == "mean_sqrt_len_tokens" else norm)
