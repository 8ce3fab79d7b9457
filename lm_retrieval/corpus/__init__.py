"""Corpora: readers for files and folders, chunking, and the built-in corpus."""

from lm_retrieval.corpus.reader import Corpus, CorpusCounts, open_corpus

__all__ = ["Corpus", "CorpusCounts", "open_corpus"]
