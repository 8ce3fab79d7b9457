"""What a tuning run learns from: text alone, labels, pairs, hard negatives and teachers."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OBJECTS, SUBJECTS, VERBS, make_texts, rows_of, write_jsonl
from tuning_helpers import config, manifest, material, run, texts_of

from lm_retrieval.checkpoint import Checkpoint
from lm_retrieval.config import EncoderConfig
from lm_retrieval.corpus import open_corpus
from lm_retrieval.corpus.pairs import Pair, held_out
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CheckpointError, ConfigError, CorpusError
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.index.lsi import LsiIndex
from lm_retrieval.models import LearnedPooling
from lm_retrieval.records import Document
from lm_retrieval.tokenizer import Tokenizer
from lm_retrieval.training.closed_form import principal_axes
from lm_retrieval.training.pair_batches import TokenizedPairs
from lm_retrieval.tuning import material as material_module
from lm_retrieval.tuning.material import clip, frequent_words
from lm_retrieval.tuning.mining import mine_negatives
from lm_retrieval.tuning.run import tune
from lm_retrieval.tuning.start import taught_pooling

Taught = tuple[Checkpoint, list[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def passages_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages long enough to take spans from, each the answer to two questions."""
    rows = [
        {"query": f"{asked} {number}", "positive": f"{number} {text}"}
        for number, text in enumerate(make_texts(60, seed=7, sentences=6))
        for asked in ("who knows", "what is")
    ]
    return write_jsonl(tmp_path_factory.mktemp("passages") / "passages.jsonl", rows)


# ---------------------------------------------------------------- what is learned from


def test_held_out_documents_are_on_one_side_only(corpus_path: Path, start: Path) -> None:
    found = material(corpus_path, start)
    tokenizer = Tokenizer.load(start / "tokenizer.model")

    def numbers(part: TokenizedPairs) -> set[str]:
        return {tokenizer.decode(ids.tolist()).rstrip(".").split()[-1] for ids in part.positives}

    pairs = 80 + sum(min(3, len(str(row["text"]).split()) // 24 + 1) for row in rows_of())
    assert not numbers(found.training) & numbers(found.validation)
    assert len(found.training) + len(found.validation) == pairs
    assert len(found.validation) > 0
    assert found.facts["pairs"] == len(found.training)


def test_the_same_corpus_and_seed_give_the_same_material(corpus_path: Path, start: Path) -> None:
    first, again, other = (material(corpus_path, start, f"training.seed={seed}") for seed in (1, 1, 2))
    assert (first.training.fingerprint, first.validation.fingerprint) == (
        again.training.fingerprint,
        again.validation.fingerprint,
    )
    assert first.training.fingerprint != other.training.fingerprint


def test_labels_are_the_train_split_a_file_or_none(labelled: Path, start: Path, tmp_path: Path) -> None:
    def asked(labels: str | None) -> list[int]:
        queries = texts_of(material(labelled, start, labels=labels), start, "queries")
        return sorted(int(text.rstrip("?").split()[-1]) for text in queries if text.startswith("who knows"))

    for labels in (None, "train"):
        found = asked(labels)
        assert set(found) <= set(range(60))
        assert len(found) > 40  # all but those of held-out documents
    assert asked("none") == []
    assert set(asked("dev")) <= set(range(60, 80))
    texts = [{"query": f"who knows {n}?", "positive": f"nobody knows {n}."} for n in range(30)]
    ids = [{"query": f"who knows {n}?", "positive_id": f"d{n}"} for n in range(30, 70)]
    path = write_jsonl(tmp_path / "mine.jsonl", [*texts, *ids])
    assert set(asked(str(path))) <= set(range(70))
    assert len(asked(str(path))) > 45


def test_labels_that_point_nowhere_are_refused(labelled: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"--labels tarin: neither a split of .*splits found: dev, train, none"):
        run(labelled, start, tmp_path / "run", labels="tarin")
    path = write_jsonl(tmp_path / "mine.jsonl", [{"query": "who?", "positive_id": "d999"}])
    with pytest.raises(CorpusError, match="document 'd999' is not in the corpus"):
        run(labelled, start, tmp_path / "run", labels=str(path))
    with (labelled / "qrels" / "train.tsv").open("a") as stream:
        stream.write("q1\td888\t1\n")
    with pytest.raises(CorpusError, match="query 'q1' points to document 'd888'"):
        run(labelled, start, tmp_path / "run")
    with (labelled / "qrels" / "dev.tsv").open("a") as stream:
        stream.write("q777\td1\t1\n")
    with pytest.raises(CorpusError, match="query 'q777' is judged but has no text"):
        run(labelled, start, tmp_path / "run", labels="dev")
    assert not (tmp_path / "run").exists()


def test_a_file_of_pairs_is_learned_from_as_it_is_or_as_plain_documents(pairs_path: Path, start: Path) -> None:
    as_pairs = material(pairs_path, start)
    assert texts_of(as_pairs, start, "queries") == {f"{subject} {thing}" for subject in SUBJECTS for thing in OBJECTS}
    as_documents = material(pairs_path, start, labels="none")
    assert len(texts_of(as_documents, start, "positives")) == 64


def test_spans_of_the_positives_are_learned_from_too_and_no_document_is_on_both_sides(
    passages_path: Path, start: Path, tmp_path: Path
) -> None:
    plain, found = (material(passages_path, start, f"tuning.spans_per_positive={count}") for count in (0, 1))
    assert len(plain.training) + len(plain.validation) == 120
    assert len(found.training) + len(found.validation) == 180
    assert len(found.training) > len(plain.training)
    few = material(passages_path, start, "tuning.spans_per_positive=1", "tuning.validation_pairs=4")
    assert (len(few.training), len(few.validation)) == (168, 4)  # what is left of the held-out documents is not used
    for part in (few, found):
        documents = [{ids.tobytes() for ids in side.positives} for side in (part.training, part.validation)]
        assert not documents[0] & documents[1]
    assert (len(documents[0]), len(documents[1])) == (54, 6)
    tokenizer = Tokenizer.load(start / "tokenizer.model")
    spans = 0
    for query, positive in zip(found.training.queries, found.training.positives, strict=True):
        asked, answer = tokenizer.decode(query.tolist()), tokenizer.decode(positive.tolist())
        if not asked.startswith(("who knows", "what is")):
            spans += 1
            assert f" {asked} " in f" {answer} "
    assert spans == 54
    result = run(passages_path, start, tmp_path / "run", "training.max_steps=2", "tuning.spans_per_positive=1")
    assert np.isfinite(result.metrics["validation_loss"])


def test_spans_are_taken_from_what_a_cut_leaves_of_a_positive(start: Path, tmp_path: Path) -> None:
    kept, lost = "the river carries cold water " * 8, "her violin paints glass " * 40
    rows = [{"query": f"who knows {number}", "positive": f"{number} {kept}{lost}"} for number in range(60)]
    path = write_jsonl(tmp_path / "long.jsonl", rows)
    found = material(path, start, "tuning.spans_per_positive=1", "tuning.max_text_characters=200")
    queries = texts_of(found, start, "queries")
    assert len(found.training) + len(found.validation) == 120
    assert any("river" in text for text in queries)
    for text in queries | texts_of(found, start, "positives"):
        assert "glass" not in text
        assert "violin" not in text


def test_of_too_many_pairs_the_same_are_drawn_and_held_out_whatever_the_seed(
    pairs_path: Path, passages_path: Path, corpus_path: Path, start: Path
) -> None:
    for corpus, overrides in (
        (pairs_path, ("tuning.max_pairs=55",)),
        (passages_path, ("tuning.max_pairs=100", "tuning.spans_per_positive=1")),
        (corpus_path, ("tuning.max_pairs=70", "tuning.spans_per_document=0")),
    ):
        first, other = (material(corpus, start, *overrides, f"training.seed={seed}") for seed in (1, 2))
        assert first.training.fingerprint == other.training.fingerprint, corpus
        assert first.validation.fingerprint == other.validation.fingerprint, corpus
    drawn = material(pairs_path, start, "tuning.max_pairs=55")
    assert len(drawn.training) + len(drawn.validation) == 55
    rows = [json.loads(line) for line in pairs_path.read_text().splitlines()]
    assert texts_of(drawn, start, "queries") != {row["query"] for row in rows[:55]}


def test_long_texts_are_cut_between_words() -> None:
    assert clip("one two three", 13) == "one two three"
    assert clip("one two three", 12) == "one two"
    assert clip("one two three", 3) == "one"
    assert clip("unbroken", 4) == "unbr"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of(49), r"too little to tune on \(49 documents, 49 different"),
        ([{**row, "title": "one", "text": "the same text"} for row in rows_of()], r"\(80 documents, 1 different"),
        ([{**row, "title": "", "text": ""} for row in rows_of()], r"\(80 documents, 0 different"),
        ([{**row, "title": ""} | {"text": f"word {n}"} for n, row in enumerate(rows_of())], "only 0 pairs from 0"),
    ],
    ids=["few", "duplicates", "empty", "short"],
)
def test_too_little_text_is_said_and_leaves_nothing_behind(
    start: Path, tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    with pytest.raises(CorpusError, match=message):
        run(corpus, start, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["corpus.jsonl"]


# ---------------------------------------------------------------- hard negatives


def test_mined_negatives_rank_high_and_are_never_known_to_answer() -> None:
    documents = {f"d{n}": Document(f"d{n}", "", text) for n, text in enumerate(make_texts(100, seed=5))}
    queries = [text.split(".")[0] for text in make_texts(12, seed=5)]
    pairs = [
        Pair(query, documents[doc_id].content, doc_id, "labels")
        for number, query in enumerate(queries)
        for doc_id in (f"d{number}", f"d{number + 20}")
    ]
    mined = mine_negatives(pairs, documents, count=8, encoder=None)
    assert [pair._replace(negatives=()) for pair in mined] == pairs
    contents_by_row = [document.content for document in documents.values()]
    lexical = LexicalIndex.build(contents_by_row)
    for number, query in enumerate(queries):
        relevant = {documents[f"d{number}"].content, documents[f"d{number + 20}"].content}
        near = [contents_by_row[row] for row in lexical.search(query, 50)[0]]
        for pair in mined[2 * number : 2 * number + 2]:
            assert len(set(pair.negatives)) == 8
            assert not relevant & set(pair.negatives)
            assert set(pair.negatives) <= set(near[5:])
    assert mine_negatives(pairs, documents, count=8, encoder=None) == mined


def test_with_an_encoder_negatives_come_from_both_and_none_is_nearly_as_close_as_the_answer() -> None:
    texts = make_texts(100, seed=5)
    documents = {f"d{n}": Document(f"d{n}", "", text) for n, text in enumerate(texts)}
    lsi = LsiIndex(texts, dim=20)

    class LsiEncoder:
        def encode(self, inputs: str | list[str]) -> np.ndarray:
            vectors = lsi.encode([inputs] if isinstance(inputs, str) else inputs)
            return vectors[0] if isinstance(inputs, str) else vectors

    pairs = [Pair(text.split(".")[0], text, f"d{number}", "labels") for number, text in enumerate(texts[:20])]
    mined = mine_negatives(pairs, documents, count=12, encoder=LsiEncoder())  # type: ignore[arg-type]
    lexical = LexicalIndex.build(texts)
    beyond_words = 0
    for pair in mined:
        scores = lsi.encode(texts) @ lsi.encode([pair.query])[0]
        by_words = lexical.search(pair.query, 50)[0][5:].tolist()
        by_meaning = np.argsort(-scores, kind="stable")[5:50].tolist()
        rows = [texts.index(text) for text in pair.negatives]
        assert set(rows) <= set(by_words) | set(by_meaning)
        beyond_words += len(set(rows) - set(by_words))
        assert max(scores[rows]) < 0.95 * scores[texts.index(pair.positive)]
    assert beyond_words > 10


def test_tuning_with_hard_negatives_gives_them_to_labelled_pairs_only(
    labelled: Path, start: Path, tmp_path: Path
) -> None:
    queries = [{"_id": f"q{n}", "text": f"who knows a sparrow, our engine, the river {n}?"} for n in range(80)]
    write_jsonl(labelled / "queries.jsonl", queries)
    found = material(labelled, start, "tuning.hard_negatives=2").training
    tokenizer = Tokenizer.load(start / "tokenizer.model")
    mined = 0
    for query, positive, negatives in zip(found.queries, found.positives, found.negatives, strict=True):
        asked = tokenizer.decode(query.tolist())
        assert len(negatives) == (2 if asked.startswith("who knows") else 0)
        mined += len(negatives)
        assert not any(np.array_equal(positive, negative) for negative in negatives)
    assert mined > 80
    result = run(labelled, start, tmp_path / "run", "tuning.hard_negatives=2")
    assert np.isfinite(result.metrics["validation_loss"])


# ---------------------------------------------------------------- words a teacher is asked about


def test_words_come_the_most_frequent_first_up_to_a_limit_and_without_numbers() -> None:
    texts = ["glass, 42 river; 42 river", "(river) glass 42 3.5 _ 1999", "water 42"]
    assert frequent_words(texts) == ["river", "glass", "water"]
    assert frequent_words(texts, most=2) == ["river", "glass"]
    assert frequent_words(iter(["1 2", "", "3"])) == []


def test_apostrophes_hyphens_letters_of_any_script_and_digits_inside_belong_to_a_word() -> None:
    words = ["don't", "state-of-the-art", "größer", "река", "sha256"]
    assert frequent_words([" ".join(words)]) == words


def test_a_teacher_is_asked_about_the_words_of_training_texts_only(start: Path, tmp_path: Path) -> None:
    rows = [{**row, "text": f"{row['text']} {'hidden' if held_out(str(row['_id'])) else 'shown'}"} for row in rows_of()]
    path = write_jsonl(tmp_path / "corpus.jsonl", rows)
    words = material(path, start, teacher="lsi").words
    assert {"the", "violin", "shown"} <= set(words)
    assert "hidden" not in words
    assert words.index("the") < words.index("shown")
    assert material(path, start, teacher="none").words == []


def word_vectors(pooling: LearnedPooling, start: Path, words: Sequence[str]) -> np.ndarray:
    """The mean token vector of each word, of length 1; zeros stay zeros."""
    tokenizer = Tokenizer.load(start / "tokenizer.model")
    table = pooling.token_vectors.detach().numpy()
    means = np.stack([table[tokenizer.encode(word)].mean(0) for word in words])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def taught(corpus_path: Path, start: Path) -> Taught:
    """Texts without violin and senate, as token ids, and a teacher's vectors of them."""
    contents = [document.content for document in open_corpus(corpus_path).documents()]
    texts = [text for text in contents if "violin" not in text and "senate" not in text]
    loaded = Checkpoint.load(start)
    return loaded, [np.asarray(loaded.tokenizer.encode(text)) for text in texts], LsiIndex(texts).encode(texts)


def test_a_word_that_no_text_has_takes_the_direction_that_its_teacher_gives_it(taught: Taught, start: Path) -> None:
    loaded, ids, targets = taught
    assert not word_vectors(taught_pooling(*taught), start, ("violin", "senate")).any()
    said = np.stack([0.5 * targets[0], targets[3], targets[40]])  # the teacher does not know the first word
    words = ("old bridges", "violin", "senate")
    pooling = taught_pooling(loaded, ids, targets, words=words, word_targets=said)
    found = word_vectors(pooling, start, ("violin", "senate")) @ (targets @ principal_axes(targets, dim=256)).T
    np.testing.assert_allclose(found, targets[[3, 40]] @ targets.T, atol=0.05)
    assert found[:, [3, 40]].diagonal().min() > 0.95
    assert found[0, 40] < 0.5


@pytest.mark.parametrize("length", [0.0, 0.5, 0.95])
def test_words_that_a_teacher_does_not_know_change_nothing(taught: Taught, length: float) -> None:
    loaded, ids, targets = taught
    words, said = ("violin", "river", "senate"), targets[[3, 7, 40]]
    for plain, more in (
        (((), None), (words, length * said)),
        ((words[:1], said[:1]), (words, said * np.float32([[1], [length], [length]]))),
    ):
        before, after = (
            taught_pooling(loaded, ids, targets, words=asked, word_targets=vectors).state_dict()
            for asked, vectors in (plain, more)
        )
        assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_tuning_with_lsi_begins_with_what_lsi_says_about_single_words(
    corpus_path: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["river", "sparrow", "engine", "theorem", "baker", "violin", "senate", *VERBS, "bridges", "apples", "glass"]
    lsi = LsiIndex(document.content for document in open_corpus(corpus_path).documents()).encode(words)
    others = ~np.eye(len(words), dtype=bool)

    def agreement(output: Path) -> float:
        still = ("training.max_steps=1", "training.learning_rate=1e-9", "tuning.words_only=true")
        result = run(corpus_path, start, output, *still, teacher="lsi")
        assert np.isfinite(result.metrics["validation_loss"])
        vectors = Encoder.load(output, device="cpu").encode(words)
        return float(np.corrcoef((vectors @ vectors.T)[others], (lsi @ lsi.T)[others])[0, 1])

    with_words = agreement(tmp_path / "with")
    monkeypatch.setattr(material_module, "frequent_words", lambda texts: [])
    assert with_words > agreement(tmp_path / "without") + 0.05


# ---------------------------------------------------------------- teachers


def test_the_pooling_that_is_fitted_to_lsi_says_what_lsi_says(corpus_path: Path, start: Path) -> None:
    loaded = Checkpoint.load(start)
    texts = [document.content for document in open_corpus(corpus_path).documents()]
    targets = LsiIndex(texts).encode(texts)
    ids = [np.asarray(loaded.tokenizer.encode(text)) for text in texts]
    pooling = taught_pooling(loaded, ids, targets)
    encoder = Encoder(
        Checkpoint(loaded.model, loaded.tokenizer, loaded.config, {}, start, pooling),
        config=EncoderConfig(pooling="learned", max_length_tokens=512),
    )
    vectors = encoder.encode(texts)
    others = ~np.eye(len(texts), dtype=bool)
    agreement = np.corrcoef((vectors @ vectors.T)[others], (targets @ targets.T)[others])[0, 1]
    plain = Encoder(loaded).encode(texts)
    assert agreement > 0.9
    assert np.corrcoef((plain @ plain.T)[others], (targets @ targets.T)[others])[0, 1] < agreement - 0.2


def test_lsi_teaches_a_language_model_and_then_blended_an_encoder(
    corpus_path: Path, start: Path, tmp_path: Path
) -> None:
    first = run(corpus_path, start, tmp_path / "first", teacher="lsi")
    facts = manifest(tmp_path / "first")
    assert (facts["teacher"], facts["tuned_from"]) == ("lsi", "tiny-lstm")
    assert len(facts["teacher_sha256"]) == 64
    assert first.metrics["validation_accuracy"] > 0.6
    second = run(corpus_path, tmp_path / "first", tmp_path / "second", teacher="lsi")
    facts = manifest(tmp_path / "second")
    assert facts["teacher"].startswith("lsi with ")
    assert facts["teacher"].endswith("0% first")
    assert second.metrics["validation_accuracy"] > 0.6


def test_the_corpus_teaches_unless_there_are_pairs_only(
    corpus_path: Path, pairs_path: Path, start: Path, tmp_path: Path
) -> None:
    for name, corpus, expected in (("text", corpus_path, "lsi"), ("pairs", pairs_path, None)):
        begin = Checkpoint.load(start)
        output = tmp_path / name
        tune(open_corpus(corpus), start=begin, config=config("training.max_steps=1"), output=output)
        assert manifest(output)["teacher"] == expected


def test_teachers_that_cannot_teach_are_refused(
    corpus_path: Path, pairs_path: Path, start: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: not a sentence-transformers model"):
        run(corpus_path, start, tmp_path / "run", teacher=str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="--teacher lsi learns from the documents of a corpus"):
        run(pairs_path, start, tmp_path / "run", teacher="lsi")
    assert not (tmp_path / "run").exists()
