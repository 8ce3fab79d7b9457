"""Answering queries from an index: dense, BM25 or both."""

from lm_retrieval.search.backend import Backend
from lm_retrieval.search.finding import check_index, find_index, index_name, newest_index, open_index
from lm_retrieval.search.searcher import LIKELIHOOD_WEIGHT, Fusion, Mode, Rerank, Searcher

__all__ = [
    "LIKELIHOOD_WEIGHT",
    "Backend",
    "Fusion",
    "Mode",
    "Rerank",
    "Searcher",
    "check_index",
    "find_index",
    "index_name",
    "newest_index",
    "open_index",
]
