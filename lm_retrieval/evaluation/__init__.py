"""Ranking evaluation: TREC files, measures."""
