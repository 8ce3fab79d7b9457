"""Query likelihood: how probable a language model finds the query after having read the document.

Ponte & Croft, 1998 (doi:10.1145/290941.291008), with a neural model's next-token probabilities in place of a document's
word counts.

Shapes: N documents, T tokens, Q tokens of the query, D hidden.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lm_retrieval.encoding.batching import token_budget_batches
from lm_retrieval.models import LanguageModel
from lm_retrieval.tokenizer import TextTokenizer

_MAX_DOCUMENT_TOKENS = 256
_BATCH_TOKENS = 8192


@torch.inference_mode()
def query_likelihood(
    model: LanguageModel, *, tokenizer: TextTokenizer, query: str, documents: Sequence[str]
) -> NDArray[np.float32]:
    """(N,) mean log-probability, in nats, of the query's tokens after each document (its first 256 tokens).

    Args:
        model: in evaluation mode.
        tokenizer: the model's own.
        query: a query without tokens gives 0 for every document.
        documents: texts, in the order of the result.
    """
    wanted = tokenizer.encode(query)
    limit = _MAX_DOCUMENT_TOKENS
    if model.context_length is not None:
        wanted = wanted[: model.context_length // 2]
        limit = min(limit, model.context_length - len(wanted))
    result = np.zeros(len(documents), np.float32)
    if not wanted:
        return result
    prefixes = [[tokenizer.bos_id, *tokenizer.encode(text)][:limit] for text in documents]
    lengths = np.fromiter(map(len, prefixes), np.int64, len(prefixes))
    for places in token_budget_batches(lengths + len(wanted), max_batch_tokens=_BATCH_TOKENS):
        padded = np.zeros((len(places), int(lengths[places[0]]) + len(wanted) - 1), np.int64)
        for row, place in enumerate(places):
            ids = prefixes[place] + wanted[:-1]  # the last token of the query is only predicted
            padded[row, : len(ids)] = ids
        hidden = model(torch.from_numpy(padded).to(model.device)).hidden  # (B, T, D)
        steps = torch.from_numpy(lengths[places] - 1)[:, None] + torch.arange(len(wanted))  # (B, Q)
        states = hidden[torch.arange(len(places))[:, None], steps.to(hidden.device)]  # (B, Q, D)
        targets = torch.tensor(wanted, device=hidden.device).repeat(len(places))
        losses = model.nll(states.flatten(0, 1), targets).view(len(places), len(wanted))
        result[places] = -losses.mean(1).cpu().numpy()
    return result
