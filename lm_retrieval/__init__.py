"""Train small language models on your own text, turn them into encoders, search, and measure the ranking.

The public names below load on first use: `import lm_retrieval` imports neither torch nor faiss.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lm_retrieval.version import __version__

_HOMES = {
    "Checkpoint": "checkpoint",
    "Document": "records",
    "Encoder": "encoding.encoder",
    "Hit": "records",
    "LmRetrievalError": "errors",
    "Searcher": "search",
    "Tokenizer": "tokenizer",
    "build_index": "index.builder",
    "compare": "evaluation.report",
    "evaluate": "evaluation.evaluator",
    "open_corpus": "corpus",
    "train": "training.run",
}

__all__ = list(_HOMES)

if TYPE_CHECKING:
    from lm_retrieval.checkpoint import Checkpoint
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.encoding.encoder import Encoder
    from lm_retrieval.errors import LmRetrievalError
    from lm_retrieval.evaluation.evaluator import evaluate
    from lm_retrieval.evaluation.report import compare
    from lm_retrieval.index.builder import build_index
    from lm_retrieval.records import Document, Hit
    from lm_retrieval.search import Searcher
    from lm_retrieval.tokenizer import Tokenizer
    from lm_retrieval.training.run import train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lm_retrieval' has no attribute '{name}'")
    return getattr(importlib.import_module(f"lm_retrieval.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
