"""Dynamic padding: texts of like length share a batch, and a batch holds so many tokens, not so many texts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def token_budget_batches(
    lengths: Sequence[int] | NDArray[np.integer], *, max_batch_tokens: int, max_batch_size: int | None = None
) -> list[NDArray[np.int64]]:
    """Groups text numbers into batches, longest texts first (so that running out of memory shows at once).

    Args:
        lengths: true token counts.
        max_batch_tokens: padded tokens of a batch; a single longer text is a batch of its own.
        max_batch_size: most texts of a batch.

    Returns:
        Arrays of positions in `lengths`; together they hold each exactly once.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, max_batch_tokens // max(1, int(lengths[order[start]])))
        size = min(size, max_batch_size or size)
        batches.append(order[start : start + size])
        start += size
    return batches
