"""Search, reranking, tokens and perplexity over real HTTP, against the library and the commands."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import rows_of, write_jsonl
from hugging_face_models import save_gpt2
from serving import Running, error_of, serving, settings_of

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.likelihood import query_likelihood
from lm_retrieval.perplexity import perplexity
from lm_retrieval.search import Searcher

QUERY = "the river carries cold water"
DOCUMENTS = ["a sparrow repairs glass", "the river carries cold water 7.", "her violin", ""]


@pytest.fixture(scope="module")
def index_path(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_jsonl(folder / "corpus" / "corpus.jsonl", rows_of(40))
    encoder = Encoder.load(make_checkpoint("lstm", seed=3))
    build_index(open_corpus(folder / "corpus"), encoder=encoder, output=folder / "docs")
    return folder / "docs"


@pytest.fixture(scope="module")
def running(
    make_checkpoint: Callable[..., Path], index_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    models = {
        "rnn": make_checkpoint("lstm", seed=3),
        "transformer": make_checkpoint("transformer", seed=3),
        "gpt2": f"hf:{save_gpt2(tmp_path_factory.mktemp('models') / 'tiny')}",
    }
    with serving(settings_of(models, index=index_path, limits={"max_hits": 20})) as started:
        yield started


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "dense"},
        {"mode": "bm25"},
        {"fusion": "rrf"},
        {"dense_weight": 0.9},
        {"mode": "bm25", "rerank": "lm"},
    ],
    ids=str,
)
def test_hits_are_those_of_the_library(running: Running, index_path: Path, options: dict[str, Any]) -> None:
    answer = running.client.post("/search", json={"query": QUERY, "k": 4, **options})
    assert answer.status_code == 200
    expected = [hit.to_dict() for hit in Searcher(index_path).search(QUERY, k=4, **options)]
    found = answer.json()["hits"]
    assert [hit["id"] for hit in found] == [hit["id"] for hit in expected]
    for hit, other in zip(found, expected, strict=True):
        assert hit.pop("score") == pytest.approx(other.pop("score"), rel=1e-4)
        assert hit == other


def test_search_by_address(running: Running) -> None:
    posted = running.client.post("/search", json={"query": QUERY, "k": 3, "mode": "bm25"}).json()
    assert running.client.get("/search", params={"q": QUERY, "k": 3, "mode": "bm25"}).json() == posted
    assert posted["query"] == QUERY
    assert len(posted["hits"]) == 3
    hit = posted["hits"][0]
    start, end = hit["highlights"][0]
    assert hit["snippet"][start:end].lower() in QUERY


def test_limits_of_search(running: Running) -> None:
    for query in ({"q": " "}, {"q": "a", "k": 0}, {"q": "a", "mode": "x"}, {"q": "a", "k": 21}, {}):
        assert error_of(running.client.get("/search", params=query), 422)
    assert error_of(running.client.post("/search", json={"query": "a", "dense_weight": 2}), 422)


def test_the_index_is_part_of_health(running: Running) -> None:
    assert running.client.get("/health").json()["indexes"] == [
        {"name": "docs", "status": "ready", "documents": 40, "backend": "an index folder", "bm25": "here"}
    ]


# ---------------------------------------------------------------- reranking


def test_reranking_by_similarity(running: Running) -> None:
    encoder = running.served.models["rnn"].text_encoder
    vectors = encoder.encode([QUERY, *DOCUMENTS], normalize_embeddings=True)
    expected = vectors[1:] @ vectors[0]
    answer = running.client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS}).json()
    assert answer["model"] == "rnn"
    assert [row["index"] for row in answer["results"]] == np.argsort(-expected, kind="stable").tolist()
    scores = {row["index"]: row["relevance_score"] for row in answer["results"]}
    np.testing.assert_allclose([scores[place] for place in range(4)], expected, atol=1e-5)
    assert answer["total_tokens"] == sum(len(encoder.tokenizer.encode(text)) for text in (QUERY, *DOCUMENTS))


@pytest.mark.parametrize("name", ["rnn", "transformer", "gpt2"])
def test_reranking_by_likelihood(running: Running, name: str) -> None:
    loaded = running.served.models[name].language_model
    body = {"query": QUERY, "documents": DOCUMENTS, "method": "lm", "model": name, "top_n": 2}
    answer = running.client.post("/rerank", json={**body, "return_documents": True}).json()
    expected = query_likelihood(loaded.model, tokenizer=loaded.tokenizer, query=QUERY, documents=DOCUMENTS)
    best = np.argsort(-expected)[:2].tolist()
    assert [row["index"] for row in answer["results"]] == best
    assert [row["document"] for row in answer["results"]] == [DOCUMENTS[place] for place in best]
    assert answer["results"][0]["relevance_score"] == pytest.approx(float(expected.max()), rel=1e-4)


def test_a_model_without_an_encoder_reranks_by_likelihood_only(running: Running) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "model": "gpt2"}
    assert error_of(running.client.post("/rerank", json=body), 422)["code"] == "not_an_encoder"


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("name", ["rnn", "transformer", "gpt2"])
def test_tokens_and_back(running: Running, name: str) -> None:
    tokenizer = running.served.models[name].language_model.tokenizer
    text = "the river ä日"
    answer = running.client.post("/tokenize", json={"text": text, "model": name}).json()
    assert answer["tokens"] == tokenizer.encode(text)
    assert answer["count"] == len(answer["tokens"]) == len(answer["pieces"])
    assert answer["max_model_len"] == (None if name == "rnn" else 64)
    back = running.client.post("/detokenize", json={"tokens": answer["tokens"], "model": name}).json()
    assert back == {"model": name, "prompt": text}
    marked = running.client.post("/tokenize", json={"prompt": text, "model": name, "add_special_tokens": True}).json()
    assert marked["tokens"] == [tokenizer.bos_id, *answer["tokens"]]


def test_marks_of_a_tokenizer(running: Running) -> None:
    info = running.client.get("/tokenizer_info").json()
    tokenizer = running.served.models["rnn"].language_model.tokenizer
    assert info == {"model": "rnn", "vocab_size": tokenizer.vocab_size, "bos_token": "<s>", "eos_token": "</s>"}
    assert running.client.post("/tokenize", json={"prompt": "</s>"}).json()["tokens"] == [tokenizer.eos_id]
    info = running.client.get("/tokenizer_info", params={"model": "gpt2"}).json()
    assert info["bos_token"] == info["eos_token"] == "<|endoftext|>"


# ---------------------------------------------------------------- perplexity


def test_perplexity_of_every_model_is_the_commands(running: Running) -> None:
    texts = ["the river carries cold water 7.", "a sparrow", "our engine repairs old bridges. " * 20]
    answer = running.client.post("/perplexity", json={"text": texts}).json()["models"]
    assert set(answer) == {"rnn", "transformer", "gpt2"}
    for name, figures in answer.items():
        loaded = running.served.models[name].language_model
        expected = perplexity(loaded.model, tokenizer=loaded.tokenizer, texts=texts).to_dict()
        assert figures["total"].pop("context") == expected.pop("context")
        assert figures["total"] == pytest.approx(expected, rel=1e-4)
        each = perplexity(loaded.model, tokenizer=loaded.tokenizer, texts=texts[1:2]).to_dict()
        assert figures["texts"][1]["nll"] == pytest.approx(each["nll"], rel=1e-4)


def test_perplexity_of_one_model_in_another_way(running: Running) -> None:
    body = {"text": "the river carries cold water. " * 20, "model": "transformer", "context": "strided", "stride": 16}
    answer = running.client.post("/perplexity", json=body).json()["models"]
    loaded = running.served.models["transformer"].language_model
    expected = perplexity(
        loaded.model, tokenizer=loaded.tokenizer, texts=[str(body["text"])], context="strided", stride=16
    )
    assert list(answer) == ["transformer"]
    assert answer["transformer"]["total"]["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
    assert answer["transformer"]["total"]["stride"] == 16
