"""Tuning: from a checkpoint and a corpus, or labelled pairs, to an encoder made for retrieval."""
