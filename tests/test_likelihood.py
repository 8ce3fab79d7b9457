"""Query likelihood against one document at a time, and reranking against its definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_texts

from lm_retrieval.checkpoint import Checkpoint
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.fusion import interpolated
from lm_retrieval.index.likelihood import query_likelihood
from lm_retrieval.search import LIKELIHOOD_WEIGHT, Searcher


@pytest.fixture
def index_path(judged: Path, encoder: Encoder, tmp_path: Path) -> Path:
    build_index(open_corpus(judged), encoder=encoder, output=tmp_path / "index")
    return tmp_path / "index"


@torch.no_grad()
def by_hand(checkpoint: Checkpoint, query: str, document: str) -> float:
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    prefix, wanted = [tokenizer.bos_id, *tokenizer.encode(document)], tokenizer.encode(query)
    limit = min(256, (model.context_length or 10_000) - len(wanted))
    ids = torch.tensor([prefix[:limit] + wanted])
    log_probabilities = model.logits(model(ids[:, :-1]).hidden)[0].log_softmax(-1)
    start = len(prefix[:limit]) - 1
    return float(np.mean([log_probabilities[start + place, token] for place, token in enumerate(wanted)]))


def test_likelihood_equals_one_document_at_a_time(checkpoint_path: Path) -> None:
    checkpoint = Checkpoint.load(checkpoint_path)
    documents = [*make_texts(5, sentences=1), "", *make_texts(2, sentences=40)]
    found = query_likelihood(
        checkpoint.model, tokenizer=checkpoint.tokenizer, query="a sparrow follows glass", documents=documents
    )
    expected = [by_hand(checkpoint, "a sparrow follows glass", document) for document in documents]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_query_without_tokens_and_no_documents(checkpoint_path: Path) -> None:
    checkpoint = Checkpoint.load(checkpoint_path)
    arguments = {"tokenizer": checkpoint.tokenizer}
    assert query_likelihood(checkpoint.model, query="", documents=["a", "b"], **arguments).tolist() == [0, 0]
    assert query_likelihood(checkpoint.model, query="a", documents=[], **arguments).shape == (0,)


def test_reranking_interpolates_the_scores_of_the_first_hundred(index_path: Path) -> None:
    searcher = Searcher(index_path)
    query = "the river carries cold water"
    plain = searcher.rank([query], k=100, mode="bm25")[0]
    texts = [searcher.document(doc_id).content for doc_id in plain]
    checkpoint = searcher.encoder.checkpoint
    likely = query_likelihood(checkpoint.model, tokenizer=checkpoint.tokenizer, query=query, documents=texts)
    expected = interpolated(plain, dict(zip(plain, likely.tolist(), strict=True)), weight=LIKELIHOOD_WEIGHT)
    found = searcher.rank([query], k=100, mode="bm25", rerank="lm")[0]
    assert found == pytest.approx(expected)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert list(searcher.rank([query], k=3, mode="bm25", rerank="lm")[0]) == list(found)[:3]


def test_what_stands_beyond_the_first_hundred_follows_in_its_order(
    index_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_retrieval.search.searcher._RERANK_DEPTH", 4)
    searcher = Searcher(index_path)
    plain = searcher.rank(["the river carries cold water"], k=10, mode="dense")[0]
    found = searcher.rank(["the river carries cold water"], k=10, mode="dense", rerank="lm")[0]
    assert set(list(found)[:4]) == set(list(plain)[:4])
    assert list(found)[4:] == list(plain)[4:]
    assert list(found.values()) == sorted(found.values(), reverse=True)
