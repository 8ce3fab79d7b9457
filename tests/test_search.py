"""Searching: the right documents in the right order, in every mode, with snippets cut from the original."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Said, make_texts, write_jsonl

from lm_retrieval.checkpoint import save_checkpoint
from lm_retrieval.config import (
    BigramConfig,
    EncoderConfig,
    GptConfig,
    LstmConfig,
    ModelConfig,
    RunConfig,
    TransformerConfig,
)
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError, IndexFormatError
from lm_retrieval.index.builder import build_index, rebuild_vectors
from lm_retrieval.index.fusion import reciprocal_rank, weighted_sum
from lm_retrieval.models import build_model
from lm_retrieval.records import Span
from lm_retrieval.search import Searcher, find_index, newest_index
from lm_retrieval.search.local import LocalBackend
from lm_retrieval.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def index(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(make_texts(40, seed=1))]
    rows += [{"_id": f"long{n}", "text": " ".join(make_texts(15, seed=20 + n))} for n in range(3)]
    rows[5] |= {"title": "About harbours", "text": "Nothing but ships. The zebra sleeps! Ropes and more ropes."}
    build_index(
        open_corpus(write_jsonl(folder / "corpus.jsonl", rows)),
        encoder=encoder,
        output=folder / "index",
    )
    return folder / "index"


def brute_force(index: Path, encoder: Encoder, query: str) -> dict[str, float]:
    """Every chunk scored by hand; a document's score is its best chunk's."""
    local = LocalBackend(index)
    scores: dict[str, float] = {}
    query_vector = encoder.encode(query)
    for row, document in enumerate(local.store.documents()):
        vectors = encoder.encode([document.content[span.start : span.end] for span in local.spans(row)])
        scores[document.doc_id] = float((vectors @ query_vector).max())
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


@pytest.mark.parametrize("query", ["the river carries cold water 7", "glass", "her violin questions loud music"])
@pytest.mark.parametrize("k", [1, 5, 43, 1000])
def test_dense_ranks_documents_by_their_best_chunk(index: Path, encoder: Encoder, query: str, k: int) -> None:
    expected = brute_force(index, encoder, query)
    found = Searcher(index).rank([query], k=k, mode="dense")[0]
    assert len(found) == min(k, 43)
    np.testing.assert_allclose(list(found.values()), list(expected.values())[:k], atol=1e-5)
    for doc_id, score in found.items():
        assert score == pytest.approx(expected[doc_id], abs=1e-5)


def test_many_queries_at_once_rank_like_each_alone(index: Path) -> None:
    queries = [text.split(".")[0] for text in make_texts(70, seed=30)]
    searcher = Searcher(index)
    for mode in ("dense", "bm25", "hybrid"):
        together = searcher.rank(queries, k=10, mode=mode)
        for query, ranking in zip(queries[:8], together, strict=False):
            alone = searcher.rank([query], k=10, mode=mode)[0]
            assert list(ranking) == list(alone)


def test_hybrid_is_the_fusion_of_both(index: Path) -> None:
    searcher = Searcher(index)
    query = "the zebra follows new laws"
    lexical = searcher.rank([query], k=100, mode="bm25")[0]
    dense = searcher.rank([query], k=100, mode="dense")[0]
    for fusion, expected in (
        ("weighted", weighted_sum(lexical, dense, dense_weight=0.4)),
        ("rrf", reciprocal_rank(lexical, dense)),
    ):
        found = searcher.rank([query], k=43, mode="hybrid", fusion=fusion, dense_weight=0.4)[0]
        assert found == pytest.approx(expected)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    ends = searcher.rank([query], k=5, mode="hybrid", dense_weight=0.0)[0]
    assert next(iter(ends)) == next(iter(lexical))


@pytest.mark.parametrize("fusion", ["weighted", "rrf"])
def test_the_first_hybrid_hits_are_the_same_however_many_are_asked_for(
    index: Path, monkeypatch: pytest.MonkeyPatch, fusion: str
) -> None:
    monkeypatch.setattr("lm_retrieval.search.searcher.fusion_depth", lambda documents: 6)
    searcher = Searcher(index)
    options = {"mode": "hybrid", "fusion": fusion}
    query = "the zebra follows new laws"
    few, many = (searcher.rank([query], k=k, **options)[0] for k in (4, 43))
    assert list(many)[:4] == list(few)
    assert len(many) == 43
    assert list(many.values()) == sorted(many.values(), reverse=True)
    joined = {*searcher.rank([query], k=6, mode="bm25")[0], *searcher.rank([query], k=6, mode="dense")[0]}
    assert {*list(many)[: len(joined)]} == joined


def test_snippets_come_from_the_original_and_highlights_point_at_matches(index: Path) -> None:
    hit = Searcher(index).search("sleeping zebra", k=1, mode="bm25")[0]
    assert (hit.rank, hit.doc_id, hit.title) == (1, "d5", "About harbours")
    assert "The zebra sleeps!" in hit.snippet
    assert {hit.snippet[span.start : span.end] for span in hit.highlights} == {"zebra", "sleeps"}
    document = Searcher(index).document("d5")
    assert document.content[hit.passage.start : hit.passage.end].startswith("The zebra sleeps!")


def test_the_passage_of_a_long_document_is_its_best_matching_chunk(index: Path) -> None:
    searcher = Searcher(index)
    document = searcher.document("long1")
    last_words = " ".join(document.text.split()[-5:])
    hit = next(hit for hit in searcher.search(last_words, k=43) if hit.doc_id == "long1")
    assert hit.passage.end - hit.passage.start < len(document.text)
    assert set(last_words.rstrip(".").split()) <= set(
        document.content[hit.passage.start : hit.passage.end].replace(".", "").split()
    )


def test_a_passage_within_a_long_title_is_shown(encoder: Encoder, tmp_path: Path) -> None:
    title = "The lighthouse " + " ".join(make_texts(20, seed=3))
    rows = [{"_id": "a", "title": title, "text": "Nothing but ships."}]
    build_index(open_corpus(write_jsonl(tmp_path / "corpus.jsonl", rows)), encoder=encoder, output=tmp_path / "index")
    hit = Searcher(tmp_path / "index").search("lighthouse", mode="bm25")[0]
    assert hit.passage.end < len(title)
    assert hit.snippet.startswith("The lighthouse ")
    assert hit.highlights[0] == Span(4, 14)


def test_words_that_occur_nowhere_give_no_bm25_hits(index: Path) -> None:
    assert Searcher(index).search("qqqq zzzz", mode="bm25") == []
    assert len(Searcher(index).search("qqqq zzzz", mode="hybrid", k=3)) == 3


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -1}, {"dense_weight": 1.5}])
def test_impossible_options_are_refused(index: Path, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Searcher(index).search("water", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(index: Path, query: str) -> None:
    with pytest.raises(ConfigError, match="query is empty"):
        Searcher(index).search(query)


def test_the_label_minus_one_never_reaches_a_user(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    encoder = Encoder.load(make_checkpoint(), device="cpu", threads=1)
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(make_texts(400, seed=3, sentences=1))]
    corpus = open_corpus(write_jsonl(tmp_path / "corpus.jsonl", rows))
    build_index(corpus, encoder=encoder, output=tmp_path / "index")
    rebuild_vectors(tmp_path / "index", factory="IVF16,Flat")
    ranking = Searcher(tmp_path / "index").rank(["the river carries"], k=1000, mode="dense")[0]
    assert 0 < len(ranking) <= 400
    assert set(ranking) <= {row["_id"] for row in rows}
    assert all(-1.001 <= score <= 1.001 for score in ranking.values())


def test_names_find_indexes_and_the_newest_is_the_default(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IndexFormatError, match="no index here yet.*lmr embed"):
        newest_index()
    for age, name in ((300, "old"), (100, "new"), (200, "middle")):
        shutil.copytree(index, Path("indexes") / name)
        manifest = Path("indexes") / name / "manifest.json"
        stamp = manifest.stat().st_mtime - age
        os.utime(manifest, (stamp, stamp))
    assert newest_index() == Path("indexes/new") == find_index(None)
    assert find_index("old") == Path("indexes/old")
    assert find_index(str(index)) == index
    with pytest.raises(IndexFormatError, match="found in indexes: middle, new, old"):
        find_index("none-such")
    Path("demo.db").mkdir()
    with pytest.raises(IndexFormatError, match=r"name a collection of it: milvus\+demo.db#COLLECTION"):
        find_index("demo.db")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "not a complete index"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "damaged manifest"),
        (lambda folder: (folder / "vectors.faiss").write_bytes(b"junk"), "damaged FAISS index"),
        (lambda folder: (folder / "vectors.faiss").unlink(), "missing"),
        (lambda folder: (folder / "chunks.npy").write_bytes(b"junk"), "damaged"),
        (lambda folder: (folder / "lexical" / "size.json").write_text("?"), "damaged BM25 index"),
        (lambda folder: (folder / "lexical" / "size.json").write_text('{"documents": 3}'), "BM25 holds 3 documents"),
        (lambda folder: (folder / "lexical" / "terms.arrow").write_text("?"), "damaged BM25 index"),
    ],
)
def test_a_damaged_index_is_an_error_that_says_what_to_do(
    index: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(index, tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(IndexFormatError, match=message):
        Searcher(tmp_path / "index").search("water")


def test_a_newer_format_version_is_refused(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "index")
    path = tmp_path / "index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(IndexFormatError, match="format version 99"):
        Searcher(tmp_path / "index")


# ---------------------------------------------------------------- queries without torch

QUESTIONS = [
    "the river carries cold water 7",
    "zebra",
    "glass and green apples",
    "her violin questions loud music",
    "naïve 日本語 zebra",
    "qqqq",
    "the",
    "!",
    " ".join(make_texts(1, seed=77)),
]
MODES: list[dict[str, Any]] = [
    {"mode": "dense"},
    {"mode": "bm25"},
    {"mode": "hybrid"},
    {"mode": "hybrid", "fusion": "rrf"},
    {"mode": "hybrid", "dense_weight": 1.0},
    {"mode": "dense", "rerank": "lm"},
    {"mode": "hybrid", "rerank": "lm"},
]
MODEL_TYPES: dict[str, ModelConfig] = {
    "lstm": LstmConfig(embedding_dim=24, hidden_dim=32, num_layers=2),
    "transformer": TransformerConfig(embedding_dim=32, num_heads=2, num_layers=2, feedforward_dim=48, max_length=48),
    "gpt": GptConfig(embedding_dim=32, num_heads=2, num_layers=2, feedforward_dim=48, max_length=48),
    "bigram": BigramConfig(),
}
WINDOW = 32


def write_corpus(folder: Path) -> Path:
    rows = [
        {"_id": f"d{number}", "title": f"note {number}", "text": text} for number, text in enumerate(make_texts(60))
    ]
    rows += [{"_id": f"long{n}", "text": " ".join(make_texts(15, seed=20 + n))} for n in range(3)]
    rows[5] |= {"title": "About harbours", "text": "Nothing but ships. The zebra sleeps! Ropes and more ropes."}
    return write_jsonl(folder / "corpus.jsonl", [*rows, {"_id": "empty", "text": ""}])


def write_encoder(folder: Path, model: ModelConfig, tokenizer: Tokenizer, **encoder: Any) -> Path:
    """A checkpoint of random weights; whitening spreads what a random model puts side by side."""
    torch.manual_seed(6)
    built = build_model(model, vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape) / 4)
    settings = {"max_length_tokens": WINDOW, "overlap_tokens": 4, "postprocess": "whiten", **encoder}
    config = RunConfig(model=model, encoder=EncoderConfig(**settings))
    save_checkpoint(folder, model=built, tokenizer=tokenizer, config=config)
    return folder


def with_torch(folder: Path, copy: Path) -> Path:
    """The same index, told to encode its queries with torch."""
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"queries_without_torch": False}))
    return copy


@pytest.fixture(scope="module")
def indexes(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """For every type of model an index, and the same one that asks torch."""
    base = tmp_path_factory.mktemp("types")
    corpus = open_corpus(write_corpus(base))
    found = {}
    for name, model in MODEL_TYPES.items():
        encoder = Encoder.load(write_encoder(base / f"{name}-model", model, tokenizer), device="cpu", dtype="bfloat16")
        build_index(corpus, encoder=encoder, output=base / name)
        found[name] = base / name, with_torch(base / name, base / f"{name}-torch")
    return found


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_the_manifest_says_whether_queries_need_torch(indexes: dict[str, tuple[Path, Path]], name: str) -> None:
    light, exact = (Searcher(folder) for folder in indexes[name])
    assert light.manifest["queries_without_torch"] == (name != "bigram")
    assert (light.query_encoder is None) == (name == "bigram")
    assert exact.query_encoder is None
    assert not exact.manifest["queries_without_torch"]


def test_a_given_encoder_encodes_the_queries(index: Path, encoder: Encoder) -> None:
    assert Searcher(index).query_encoder is not None
    given = Searcher(index, encoder=encoder)
    assert given.query_encoder is None
    assert given.encoder is encoder


def test_an_index_that_says_nothing_about_torch_uses_it(index: Path, tmp_path: Path) -> None:
    manifest = json.loads((with_torch(index, tmp_path / "old") / "manifest.json").read_text())
    del manifest["queries_without_torch"]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    searcher = Searcher(tmp_path / "old")
    assert searcher.query_encoder is None
    assert list(searcher.rank(["zebra"])[0]) == list(Searcher(index).rank(["zebra"])[0])


@pytest.mark.parametrize("options", MODES, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_hits_are_the_same_with_and_without_torch(
    indexes: dict[str, tuple[Path, Path]], name: str, options: dict[str, Any]
) -> None:
    light, exact = (Searcher(folder) for folder in indexes[name])
    for query in QUESTIONS:
        found, expected = light.search(query, k=100, **options), exact.search(query, k=100, **options)
        assert [hit.doc_id for hit in found] == [hit.doc_id for hit in expected]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=2e-5)
        for one, other in zip(found, expected, strict=True):
            assert one._replace(score=0) == other._replace(score=0)
    together = light.rank(QUESTIONS, k=5, **options)
    for ranking, expected_ranking in zip(together, exact.rank(QUESTIONS, k=5, **options), strict=True):
        assert list(ranking) == list(expected_ranking)
        assert ranking == pytest.approx(expected_ranking, abs=2e-5)


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_queries_longer_than_the_window_are_not_cut(indexes: dict[str, tuple[Path, Path]], name: str) -> None:
    light, exact = (Searcher(folder) for folder in indexes[name])
    text = " ".join(make_texts(9, seed=31))
    ids = exact.encoder.tokenizer.encode(text)
    exactly, longer, whole = (exact.encoder.tokenizer.decode(ids[:count]) for count in (WINDOW, WINDOW + 1, None))
    lengths = [len(exact.encoder.tokenizer.encode(query)) for query in (exactly, longer, whole)]
    assert (lengths[0], lengths[1]) == (WINDOW, WINDOW + 1)
    assert lengths[2] > 4 * WINDOW
    vector = exact.encoder.encode(whole)
    for query in (exactly, longer, whole, text + " zebra"):
        for mode in ("dense", "hybrid"):
            found, expected = (searcher.rank([query], k=100, mode=mode)[0] for searcher in (light, exact))
            assert list(found) == list(expected)
            assert found == pytest.approx(expected, abs=2e-5)
    best = next(iter(light.rank([whole], k=1, mode="dense")[0].values()))
    shards = np.concatenate(list(light.backend.store.vector_shards()))
    assert best == pytest.approx(float((shards @ vector).max()), abs=1e-5)
    mixed = light.rank([exactly, whole, "zebra"], k=7, mode="dense")
    assert [list(ranking) for ranking in mixed] == [
        list(light.rank([query], k=7, mode="dense")[0]) for query in (exactly, whole, "zebra")
    ]


def test_no_queries_have_no_rankings(index: Path) -> None:
    for mode in ("dense", "bm25", "hybrid"):
        assert Searcher(index).rank([], mode=mode) == []


@pytest.mark.parametrize("window", [4, 16])
def test_an_index_is_built_where_every_document_is_longer_than_the_window(
    tokenizer: Tokenizer, tmp_path: Path, window: int
) -> None:
    path = write_encoder(tmp_path / "model", MODEL_TYPES["lstm"], tokenizer, max_length_tokens=window, overlap_tokens=0)
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(make_texts(40))]
    corpus = open_corpus(write_jsonl(tmp_path / "corpus.jsonl", rows))
    encoder = Encoder.load(path, device="cpu", threads=1)
    report = build_index(corpus, encoder=encoder, output=tmp_path / "index")
    assert report.split_documents == 40
    for query in ("glass", rows[7]["text"]):
        found = Searcher(tmp_path / "index").rank([query], k=5, mode="dense")[0]
        assert list(found) == list(
            Searcher(tmp_path / "index", encoder=Encoder.load(path)).rank([query], k=5, mode="dense")[0]
        )


def test_texts_in_a_script_that_the_tokenizer_spells_in_bytes_are_indexed_and_found(
    lmr: Callable[..., Said], tmp_path: Path
) -> None:
    """A character of Chinese is three tokens of `lstm-base`: the beginning of a document is longer than its window."""
    generator = random.Random(1)
    (tmp_path / "notes").mkdir()
    for number in range(5):
        text = "".join(chr(generator.randrange(0x4E00, 0x9000)) for _ in range(200))
        (tmp_path / "notes" / f"{number}.txt").write_text(f"{text} word{number}")
    done = lmr("embed", "notes", "-q")
    assert done.code == 0
    found = lmr("search", "word3", "-k", "1", "--mode", "bm25")
    assert "3.txt" in found.stdout


# ---------------------------------------------------------------- damage, seen from the command line


@pytest.fixture
def broken(indexes: dict[str, tuple[Path, Path]], tmp_path: Path) -> Path:
    """A copy of an index to break, the one that `lmr search` asks."""
    shutil.copytree(indexes["lstm"][0], tmp_path / "indexes" / "mine")
    return tmp_path / "indexes" / "mine"


def cut(path: Path, size: int = -4) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no weights": lambda folder: (folder / "encoder" / "model.safetensors").unlink(),
    "weights without their end": lambda folder: cut(folder / "encoder" / "model.safetensors"),
    "empty weights": lambda folder: cut(folder / "encoder" / "model.safetensors", 0),
    "a transform without its end": lambda folder: cut(folder / "encoder" / "transform.safetensors"),
    "no configuration": lambda folder: (folder / "encoder" / "config.json").unlink(),
    "half a configuration": lambda folder: cut(folder / "encoder" / "config.json"),
    "no tokenizer": lambda folder: (folder / "encoder" / "tokenizer.model").unlink(),
    "half a tokenizer": lambda folder: cut(folder / "encoder" / "tokenizer.model", 500),
    "no encoder": lambda folder: shutil.rmtree(folder / "encoder"),
    "no words": lambda folder: shutil.rmtree(folder / "lexical"),
    "no terms": lambda folder: (folder / "lexical" / "terms.arrow").unlink(),
    "terms without their end": lambda folder: cut(folder / "lexical" / "terms.arrow"),
    "rows without their end": lambda folder: cut(folder / "lexical" / "rows.npy"),
    "empty weights of words": lambda folder: cut(folder / "lexical" / "weights.npy", 0),
    "chunks without their end": lambda folder: cut(folder / "chunks.npy"),
    "empty chunks": lambda folder: cut(folder / "chunks.npy", 0),
    "no chunks": lambda folder: (folder / "chunks.npy").unlink(),
    "vectors without their end": lambda folder: cut(folder / "vectors.faiss"),
    "no vectors": lambda folder: (folder / "vectors.faiss").unlink(),
    "documents without their end": lambda folder: cut(folder / "documents" / "part-00000.arrow", -200),
    "no documents": lambda folder: (folder / "documents" / "part-00000.arrow").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_lmr_search_on_a_damaged_index_says_in_one_line_what_is_damaged(
    lmr: Callable[..., Said], broken: Path, damage: Callable[[Path], object]
) -> None:
    assert lmr("search", "zebra").code == 0
    damage(broken)
    said = lmr("search", "zebra")
    assert (said.code, said.stdout) == (1, "")
    assert said.stderr.startswith("Error: indexes/mine")
    assert said.stderr.count("\n") == 1


def test_weights_of_another_model_are_an_error_of_one_line(
    lmr: Callable[..., Said], broken: Path, checkpoint_path: Path
) -> None:
    shutil.copy(checkpoint_path / "model.safetensors", broken / "encoder")
    said = lmr("search", "zebra")
    assert (said.code, said.stdout) == (1, "")
    assert said.stderr.startswith("Error: indexes/mine/encoder")
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "damage", ["no weights", "weights without their end", "no terms", "terms without their end", "empty chunks"]
)
def test_the_advice_for_a_damaged_index_is_of_use(lmr: Callable[..., Said], broken: Path, damage: str) -> None:
    """Who does what the message says has an index again."""
    DAMAGE[damage](broken)
    message = lmr("search", "zebra").stderr
    assert "`lmr embed" in message
    corpus = json.loads((broken / "manifest.json").read_text())["corpus_path"]
    options = ["--rebuild"] if "--rebuild" in message else []
    done = lmr("embed", corpus, "--output", broken, "-q", *options)
    assert done.code == 0, done.stderr
    assert lmr("search", "zebra").code == 0


# ---------------------------------------------------------------- what a search loads

HEAVY = ("torch", "bm25s", "scipy", "pydantic", "pyarrow.parquet", "matplotlib", "rich", "sklearn", "pandas", "numba")
WATCH = """
import json, sys, traceback
by = {}
class Watch:
    def find_spec(self, name, path=None, target=None):
        lines = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "importlib" not in f.filename]
        by.setdefault(name, lines[-2:])
sys.meta_path.insert(0, Watch())
from lm_retrieval.cli import main
try:
    main(sys.argv[2:])
finally:
    loaded = {name: by.get(name) for name in json.loads(sys.argv[1]) if name in sys.modules}
    print(json.dumps(loaded), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("mode", "name"),
    [("hybrid", "lstm"), ("hybrid", "transformer"), ("hybrid", "gpt"), ("dense", "lstm"), ("bm25", "lstm")],
)
def test_a_search_loads_nothing_heavy(indexes: dict[str, tuple[Path, Path]], mode: str, name: str) -> None:
    unwanted = [*HEAVY, *(("faiss", "sentencepiece", "safetensors") if mode == "bm25" else ())]
    arguments = ["search", "sleeping zebra", "--index", indexes[name][0], "--mode", mode, "-k", "3"]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps(unwanted), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LMR_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert "zebra" in done.stdout
    assert json.loads(done.stderr.splitlines()[-1]) == {}


def test_bm25_search_loads_neither_torch_nor_faiss(index: Path) -> None:
    code = (
        "import sys; from lm_retrieval.search import Searcher; "
        f"hits = Searcher({str(index)!r}).search('zebra', mode='bm25'); "
        "print(hits[0].doc_id, 'torch' in sys.modules, 'faiss' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["d5", "False", "False"]
