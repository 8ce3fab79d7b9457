"""Index folders: stored texts and vectors, FAISS, BM25, fusion."""
