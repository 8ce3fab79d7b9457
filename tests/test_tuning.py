"""`tune`: it learns, from text alone, labels, pairs and teachers; resumes exactly; leaves nothing half done."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OBJECTS, SUBJECTS, VERBS, make_texts, write_jsonl

from lm_retrieval import checkpoint as checkpoint_module
from lm_retrieval.checkpoint import Checkpoint, find_checkpoint, save_checkpoint, weights_fingerprint
from lm_retrieval.cli import main
from lm_retrieval.config import EncoderConfig, RunConfig, TokenizerConfig, TrainingConfig, load_config
from lm_retrieval.corpus import open_corpus
from lm_retrieval.corpus.pairs import Pair
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CheckpointError, ConfigError, CorpusError, MismatchError, StorageError
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.index.lsi import LsiIndex
from lm_retrieval.models import build_model
from lm_retrieval.records import Document
from lm_retrieval.search import Searcher
from lm_retrieval.tokenizer import Tokenizer
from lm_retrieval.training.curves import read_metrics
from lm_retrieval.training.pair_batches import TokenizedPairs
from lm_retrieval.training.trainer import TrainingResult
from lm_retrieval.tuning.material import Material, clip, gather
from lm_retrieval.tuning.mining import mine_negatives
from lm_retrieval.tuning.run import tune, tuning_config
from lm_retrieval.tuning.start import taught_pooling

WEIGHTS = ("model.safetensors", "pooling.safetensors", "last.safetensors")
SETTINGS = (
    "training.max_steps=12",
    "training.max_epochs=1000",
    "training.batch_size=16",
    "training.learning_rate=0.01",
    "training.warmup_steps=2",
    "training.weight_decay=0",
    "training.eval_interval_steps=5",
    "training.log_interval_steps=3",
    "training.precision=float32",
    "training.sample_tokens=0",
    "tuning.token_dropout=0.1",
    "tuning.token_learning_rate_ratio=5",
    "tuning.train_language_model=true",
    "tuning.spans_per_document=3",
)
SHORT = "tuning.max_length_tokens=64"  # the tiny Transformer reads no further


def config(*overrides: str) -> RunConfig:
    return load_config(overrides=[*SETTINGS, *overrides])


def rows_of(count: int = 80) -> list[dict[str, object]]:
    """Documents that name their number in every sentence, under a title that names it too."""
    rows = []
    for number in range(count):
        subject, verb, thing = SUBJECTS[number % 8], VERBS[number // 8 % 8], OBJECTS[number * 3 % 8]
        sentences = [f"{subject} {verb} {other} {number}." for other in (thing, *OBJECTS[:5])]
        rows.append({"_id": f"d{number}", "title": f"{subject}, part {number}", "text": " ".join(sentences)})
    return rows


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", rows_of())


@pytest.fixture(scope="module")
def pairs_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries and answers without a word in common: a subject stands for a verb, an object for a number."""
    rows = [
        {"query": f"{subject} {thing}", "positive": f"{verb} {100 + 7 * place}"}
        for subject, verb in zip(SUBJECTS, VERBS, strict=True)
        for place, thing in enumerate(OBJECTS)
    ]
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A BEIR folder with a train and a dev split; its queries are found in no document."""
    folder = tmp_path / "labelled"
    write_jsonl(folder / "corpus.jsonl", rows_of())
    write_jsonl(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"who knows {n}?"} for n in range(80)])
    (folder / "qrels").mkdir()
    for split, numbers in (("train", range(60)), ("dev", range(60, 80))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in numbers)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def start(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("lstm", seed=4)


@pytest.fixture(scope="module")
def tuned(corpus_path: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, for the tests that need one to look at or to go on from."""
    output = tmp_path_factory.mktemp("tuned") / "first"
    run(corpus_path, start, output)
    return output


def run(corpus: Path, start: Path, output: Path, *overrides: str, **options: Any) -> TrainingResult:
    choices = {"config": config(*overrides), "output": output, "teacher": "none", **options}
    return tune(open_corpus(corpus), start=Checkpoint.load(start), **choices)


def material(corpus: Path, start: Path, *overrides: str, **options: Any) -> Material:
    choices = {"labels": None, "teacher": "none", "cache": corpus.parent / "cache", **options}
    return gather(open_corpus(corpus), Checkpoint.load(start), config(*overrides), **choices)


def texts_of(found: Material, start: Path, side: str) -> set[str]:
    tokenizer = Tokenizer.load(start / "tokenizer.model")
    parts: tuple[TokenizedPairs, ...] = (found.training, found.validation)
    return {tokenizer.decode(ids.tolist()) for part in parts for ids in getattr(part, side)}


def evaluations(folder: Path, name: str = "validation_loss") -> list[float]:
    return [record[name] for record in read_metrics(folder) if name in record]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    loaded = Checkpoint.load(folder)
    pooling = {} if loaded.pooling is None else dict(loaded.pooling.named_parameters())
    return dict(loaded.model.named_parameters()) | {f"pooling.{name}": tensor for name, tensor in pooling.items()}


# ---------------------------------------------------------------- learning


def test_pairs_teach_which_words_answer_which_though_they_share_none(
    pairs_path: Path, start: Path, tmp_path: Path
) -> None:
    steps = ("training.max_steps=60", "tuning.token_dropout=0")
    result = run(pairs_path, start, tmp_path / "run", *steps)
    accuracies = evaluations(tmp_path / "run", "validation_accuracy")
    assert len(accuracies) == 12
    assert accuracies[-1] > 0.8
    rows = [json.loads(line) for line in pairs_path.read_text().splitlines()]
    found = []
    for encoder in (Encoder.load(start, device="cpu"), Encoder.load(tmp_path / "run", device="cpu")):
        queries, answers = (encoder.encode([row[side] for row in rows]) for side in ("query", "positive"))
        found.append(float(((queries @ answers.T).argmax(1) == np.arange(64)).mean()))
    assert found[0] < 0.1
    assert found[1] > 0.8
    losses = evaluations(tmp_path / "run")
    assert losses[-1] < losses[0] / 4
    assert result.position.best_loss == min(losses) == losses[result.position.best_step // 5 - 1]
    facts = manifest(tmp_path / "run")
    assert (facts["pairs"], facts["teacher"], facts["tuned_from"]) == (58, None, "tiny-lstm")
    assert facts["best_step"] == result.position.best_step


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_text_alone_teaches_to_find_the_rest_of_a_document(
    corpus_path: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    result = run(corpus_path, make_checkpoint(kind), tmp_path / "run", "training.max_steps=40", SHORT)
    losses, accuracies = evaluations(tmp_path / "run"), evaluations(tmp_path / "run", "validation_accuracy")
    assert min(losses) < 0.8 * losses[0]
    assert max(accuracies) > accuracies[0]
    assert result.reason == "max_steps"
    names = "README.md config.json last.safetensors loss.svg manifest.json metrics.jsonl model.safetensors"
    expected = {*names.split(), "tokenizer.model", "pooling.safetensors", "trainer.pt"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == expected


def test_a_dev_split_decides_which_weights_are_best(labelled: Path, start: Path, tmp_path: Path) -> None:
    result = run(labelled, start, tmp_path / "run", "training.max_steps=20")
    scores = evaluations(tmp_path / "run", "dev_ndcg@10")
    assert len(scores) == 4
    assert -result.position.best_loss == max(scores)
    assert result.position.best_step == 5 * (1 + scores.index(max(scores)))
    encoder = Encoder.load(tmp_path / "run", device="cpu")
    corpus = open_corpus(labelled)
    documents = list(corpus.documents())
    cosines = (
        encoder.encode([f"who knows {n}?" for n in range(60, 80)]) @ encoder.encode([d.content for d in documents]).T
    )
    ranks = 1 + (cosines > cosines[np.arange(20), np.arange(60, 80)][:, None]).sum(1)
    assert np.mean(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0)) == pytest.approx(max(scores), abs=1e-4)


def test_without_labels_not_even_the_dev_split_is_looked_at(labelled: Path, start: Path, tmp_path: Path) -> None:
    result = run(labelled, start, tmp_path / "run", labels="none")
    assert evaluations(tmp_path / "run", "dev_ndcg@10") == []
    assert result.position.best_loss == min(evaluations(tmp_path / "run"))


def test_of_pairs_as_many_are_learned_from_as_are_not_needed_for_validation(pairs_path: Path, start: Path) -> None:
    found = material(pairs_path, start, "tuning.validation_pairs=3")
    assert (len(found.training), len(found.validation)) == (61, 3)


def test_words_alone_leave_no_projection_behind_that_was_fitted_but_not_trained(
    corpus_path: Path, start: Path, tmp_path: Path
) -> None:
    run(corpus_path, start, tmp_path / "words", "tuning.words_only=true", teacher="lsi")
    assert not parameters(tmp_path / "words")["pooling.projection"].any()
    # the next stage measures the states and takes the language model in
    run(corpus_path, tmp_path / "words", tmp_path / "all")
    after = parameters(tmp_path / "all")
    assert after["pooling.projection"].any()
    assert after["pooling.state_mean"].any()


def test_a_first_step_moves_token_vectors_by_their_multiple_of_the_learning_rate(
    corpus_path: Path, tuned: Path, tmp_path: Path
) -> None:
    settings = ("training.max_steps=1", "training.warmup_steps=0", "tuning.token_learning_rate_ratio=3")
    run(corpus_path, tuned, tmp_path / "run", *settings)
    before, after = parameters(tuned), parameters(tmp_path / "run")
    moved = {name: float((after[name] - before[name]).abs().max().detach()) for name in before}
    assert moved["pooling.token_vectors"] == pytest.approx(0.03, rel=0.01)
    assert moved["pooling.log_weights"] == pytest.approx(0.03, rel=0.01)
    assert moved["pooling.projection"] == pytest.approx(0.01, rel=0.01)
    assert moved["lstm.weight_hh_l0"] == pytest.approx(0.01, rel=0.01)
    still = ("output.weight", "output.bias", "pooling.state_mean", "pooling.state_scale")
    assert [moved[name] for name in still] == [0.0] * 4


@pytest.mark.parametrize("setting", ["tuning.train_language_model=false", "tuning.words_only=true"])
def test_a_language_model_that_is_not_to_learn_stays_as_it_was(
    corpus_path: Path, start: Path, tmp_path: Path, setting: str
) -> None:
    run(corpus_path, start, tmp_path / "run", setting)
    before, after = parameters(start), parameters(tmp_path / "run")
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert after["pooling.projection"].any() == ("words" not in setting)
    assert evaluations(tmp_path / "run", "validation_accuracy")[-1] > 0.2  # by chance 0.04


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("kind", "teacher", "overrides"),
    [
        ("lstm", "none", ("tuning.next_token_weight=0.1", "training.accumulation_steps=2")),
        ("transformer", "lsi", (SHORT,)),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one_byte_for_byte(
    corpus_path: Path,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    kind: str,
    teacher: str,
    overrides: tuple[str, ...],
) -> None:
    begin = make_checkpoint(kind)
    run(corpus_path, begin, tmp_path / "whole", *overrides, teacher=teacher)
    calls = iter(range(1000))
    first = run(
        corpus_path, begin, tmp_path / "parts", *overrides, teacher=teacher, should_stop=lambda: next(calls) >= 7
    )
    assert (first.reason, first.position.step) == ("interrupted", 7)
    Encoder.load(tmp_path / "parts", device="cpu").encode("what was saved is an encoder")
    second = run(corpus_path, begin, tmp_path / "parts", *overrides, teacher=teacher, resume=True)
    assert (second.reason, second.position.step) == ("max_steps", 12)
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert [name for name in (*WEIGHTS, "config.json", "tokenizer.model") if whole[name] != parts[name]] == []
    losses = [
        [r.get("loss", r.get("validation_loss")) for r in read_metrics(tmp_path / name)] for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_a_run_goes_on_only_with_what_it_began_with(
    corpus_path: Path, start: Path, tuned: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume; run without --resume"):
        run(corpus_path, start, tmp_path / "absent", resume=True)
    before = contents(tuned)
    with pytest.raises(ConfigError, match=r"cannot resume with another tuning\.temperature \(0\.05 there, 0\.1 now\)"):
        run(corpus_path, start, tuned, "tuning.temperature=0.1", resume=True)
    other = write_jsonl(tmp_path / "other.jsonl", rows_of(70))
    with pytest.raises(MismatchError, match="began on other text"):
        run(other, start, tuned, "training.max_steps=20", resume=True)
    tokenizer = Tokenizer.train(make_texts(60, seed=3), TokenizerConfig(vocab_size=300))
    settings = Checkpoint.load(start).config
    model = build_model(settings.model, vocab_size=tokenizer.vocab_size)
    save_checkpoint(tmp_path / "foreign", model=model, tokenizer=tokenizer, config=settings)
    with pytest.raises(MismatchError, match="tuned with another tokenizer.*give the same --from"):
        run(corpus_path, tmp_path / "foreign", tuned, resume=True)
    assert {name: before[name] for name in WEIGHTS} == {name: contents(tuned)[name] for name in WEIGHTS}


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


def test_an_output_that_holds_a_checkpoint_is_refused_and_kept(corpus_path: Path, start: Path, tuned: Path) -> None:
    before = contents(tuned)
    with pytest.raises(CheckpointError, match="holds a checkpoint already; add --resume"):
        run(corpus_path, start, tuned)
    assert contents(tuned) == before


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


# ---------------------------------------------------------------- the tuned encoder


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_a_tuned_encoder_gives_a_text_one_vector_alone_and_in_any_batch(
    corpus_path: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    run(corpus_path, make_checkpoint(kind), tmp_path / "run", "training.max_steps=2", SHORT)
    encoder = Encoder.load(tmp_path / "run", device="cpu", threads=1)
    texts = ["glass", "", *make_texts(5, seed=2), " ".join(make_texts(9, seed=3))]
    together = encoder.encode(texts)
    assert (encoder.dim, together.shape) == (256, (8, 256))
    np.testing.assert_allclose(together, np.stack([encoder.encode(text) for text in texts]), atol=1e-5)
    np.testing.assert_allclose(together, encoder.encode(texts, max_batch_tokens=40), atol=1e-5)
    assert not together[1].any()
    assert np.linalg.norm(np.delete(together, 1, 0), axis=1) == pytest.approx(1.0)


def test_the_vector_is_made_by_the_stored_pooling_window_by_window(tuned: Path) -> None:
    encoder = Encoder.load(tuned, device="cpu", threads=1)
    pooling = encoder.checkpoint.pooling
    assert pooling is not None
    text = " ".join(make_texts(6, seed=3))
    ids = encoder.tokenizer.encode(text)
    pieces = [ids[first : first + 32] for first in range(0, len(ids), 32)]
    expected = np.zeros(256)
    with torch.no_grad():
        for piece in pieces:
            rows = torch.tensor([piece])
            vector = pooling(encoder.checkpoint.model(rows).hidden, rows, torch.tensor([len(piece)]))
            expected += vector[0].numpy() * len(piece) / len(ids)
    assert encoder.encode(text, normalize_embeddings=False) == pytest.approx(expected, abs=1e-5)


def test_a_tuned_encoder_is_saved_and_loaded_whole_and_in_bfloat16_ranks_alike(tuned: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(tuned, device="cpu", threads=1)
    encoder.save(tmp_path / "copy")
    copy = Encoder.load(tmp_path / "copy", device="cpu", threads=1)
    texts = make_texts(20, seed=6)
    np.testing.assert_array_equal(copy.encode(texts), encoder.encode(texts))
    assert copy.fingerprint == encoder.fingerprint
    low = Encoder.load(tuned, device="cpu", threads=1, dtype="bfloat16")
    assert (low.encode(texts) * encoder.encode(texts)).sum(1).min() > 0.99


def test_an_index_made_with_a_tuned_encoder_is_searched_and_updated(
    corpus_path: Path, tuned: Path, tmp_path: Path
) -> None:
    report = build_index(open_corpus(corpus_path), encoder=Encoder.load(tuned, device="cpu"), output=tmp_path / "index")
    assert report.calibration is not None
    assert report.calibration.queries == 0  # of 80 documents too few are never learned from
    assert Searcher(tmp_path / "index").manifest["dim"] == 256
    assert Searcher(tmp_path / "index").search("a sparrow, part 17", k=3)[0].doc_id == "d17"
    own = Encoder.load(tmp_path / "index" / "encoder", device="cpu")
    again = build_index(open_corpus(corpus_path), encoder=own, output=tmp_path / "index")
    assert (again.encoded, again.reused) == (0, report.chunks)


def test_the_fingerprint_is_also_of_the_pooling(tuned: Path, tmp_path: Path) -> None:
    before = weights_fingerprint(Checkpoint.load(tuned))
    encoder = Encoder.load(tuned, device="cpu")
    assert encoder.checkpoint.pooling is not None
    encoder.checkpoint.pooling.log_weights.data[0] += 1
    encoder.save(tmp_path / "changed")
    assert weights_fingerprint(Checkpoint.load(tmp_path / "changed")) != before


def test_stored_in_half_precision_the_files_are_half_as_large_and_the_vectors_the_same(
    corpus_path: Path, start: Path, tuned: Path, tmp_path: Path
) -> None:
    run(corpus_path, start, tmp_path / "half", "training.stored_precision=float16")
    for name in ("model.safetensors", "pooling.safetensors"):
        assert (tmp_path / "half" / name).stat().st_size == pytest.approx((tuned / name).stat().st_size / 2, rel=0.02)
    assert (tmp_path / "half" / "last.safetensors").read_bytes() == (tuned / "last.safetensors").read_bytes()
    loaded = Encoder.load(tmp_path / "half", device="cpu")
    assert {parameter.dtype for parameter in loaded.checkpoint.model.parameters()} == {torch.float32}
    texts = make_texts(20, seed=6)
    cosines = (loaded.encode(texts) * Encoder.load(tuned, device="cpu").encode(texts)).sum(1)
    assert cosines.min() > 0.9999


def test_a_learned_pooling_that_is_missing_or_does_not_fit_is_refused(start: Path, tuned: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(tuned, device="cpu")
    for folder in ("damaged", "missing", "foreign"):
        encoder.save(tmp_path / folder)
    (tmp_path / "damaged" / "pooling.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"pooling\.safetensors: damaged weights"):
        Encoder.load(tmp_path / "damaged")
    (tmp_path / "missing" / "pooling.safetensors").unlink()
    with pytest.raises((CheckpointError, StorageError), match=r"pooling\.safetensors"):
        Encoder.load(tmp_path / "missing")
    weights = tmp_path / "foreign" / "model.safetensors"
    (tmp_path / "foreign" / "pooling.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(CheckpointError, match="the weights do not fit"):
        Encoder.load(tmp_path / "foreign")
    with pytest.raises(ConfigError, match="pooling 'learned' needs an encoder made by `lmr tune`"):
        Encoder(Checkpoint.load(start), config=EncoderConfig(pooling="learned"))


def test_the_checkpoint_says_how_to_encode_whatever_it_began_as(
    corpus_path: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    begin = make_checkpoint(pooling="max", layers="first_last")
    run(corpus_path, begin, tmp_path / "run", "training.max_steps=1", "model.hidden_dim=99", "tokenizer.vocab_size=9")
    before, after = Checkpoint.load(begin).config, Checkpoint.load(tmp_path / "run").config
    assert (after.encoder.pooling, after.encoder.layers) == ("learned", "last")
    assert after.encoder.max_length_tokens == before.encoder.max_length_tokens == 32
    assert (after.model, after.tokenizer) == (before.model, before.tokenizer)


# ---------------------------------------------------------------- settings and names


def test_overrides_change_given_defaults_and_a_file_stands_in_their_place(tmp_path: Path) -> None:
    defaults = tuning_config()
    changed = load_config(overrides=["training.batch_size=8"], defaults=defaults)
    assert changed == defaults.model_copy(update={"training": defaults.training.model_copy(update={"batch_size": 8})})
    assert load_config(defaults=defaults) == defaults
    path = tmp_path / "mine.toml"
    path.write_text("[tuning]\ntemperature = 0.5\n")
    found = load_config(path, overrides=["training.seed=9"], defaults=defaults)
    assert found.tuning.temperature == 0.5
    assert found.training == TrainingConfig(seed=9)
    assert defaults == tuning_config()


def test_without_a_configuration_tuning_takes_five_minutes() -> None:
    training = tuning_config().training
    assert (training.max_time_seconds, training.max_steps, training.max_tokens, training.max_epochs) == (
        300.0,
        None,
        None,
        None,
    )
    assert tuning_config().encoder.pooling == "learned"


@pytest.mark.parametrize(
    "override",
    ["tuning.temperature=0", "tuning.token_dropout=1", "tuning.spans_per_document=-1", "tuning.temprature=1"],
)
def test_tuning_settings_that_cannot_be_used_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        config(override)


def test_checkpoints_are_found_by_path_then_by_name_then_among_those_that_come_along(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    homes = (tmp_path / "inside", tmp_path / "beside")
    monkeypatch.setattr(checkpoint_module, "_SHIPPED", homes)
    with pytest.raises(CheckpointError, match="base: no such checkpoint folder; train one with `lmr train`"):
        find_checkpoint("base")
    loaded = Checkpoint.load(start)

    def put(folder: Path) -> Path:
        save_checkpoint(folder, model=loaded.model, tokenizer=loaded.tokenizer, config=loaded.config)
        return folder

    beside = put(homes[1] / "base")
    assert find_checkpoint("base") == beside
    inside = put(homes[0] / "base")
    assert find_checkpoint("base") == inside
    assert Checkpoint.load("base").path == inside
    own = put(tmp_path / "checkpoints" / "base")
    assert find_checkpoint("base").resolve() == own
    assert find_checkpoint(beside) == beside
    put(homes[1] / "other")
    with pytest.raises(CheckpointError, match="none: no such checkpoint folder; found: base, other"):
        find_checkpoint("none")


# ---------------------------------------------------------------- command line


@dataclass
class Said:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def lmr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Said]]:
    """The command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMR_THREADS", "1")
    handlers, level = logging.getLogger().handlers[:], logging.getLogger("lm_retrieval").level

    def call(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code: Any = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
        return Said(code, *capsys.readouterr())

    yield call
    logging.getLogger().handlers[:] = handlers
    logging.getLogger("lm_retrieval").setLevel(level)


def test_the_command_tunes_resumes_and_refuses(
    lmr: Callable[..., Said], corpus_path: Path, start: Path, tmp_path: Path
) -> None:
    base = ("tune", corpus_path, "--from", start, "--output", "checkpoints/mine", "--set", "training.batch_size=16")
    done = lmr(*base, "--set", "training.max_steps=4", "--teacher", "lsi")
    assert done.code == 0
    assert done.stdout.startswith("checkpoints/mine: 4 steps, ")
    assert "(max_steps)" in done.stdout
    assert "last: validation loss " in done.stdout
    assert "validation accuracy " in done.stdout
    assert "pairs to learn from" in done.stderr
    stored = Checkpoint.load(tmp_path / "checkpoints" / "mine").config
    assert stored.training == tuning_config().training.model_copy(update={"batch_size": 16, "max_steps": 4})
    advice = "add --resume to go on, or choose another --output"
    assert lmr(*base) == Said(1, "", f"Error: checkpoints/mine: holds a checkpoint already; {advice}\n")
    more = lmr(*base, "--set", "training.max_steps=6", "--teacher", "lsi", "--resume", "--quiet")
    assert (more.code, more.stderr) == (0, "")
    assert more.stdout.startswith("checkpoints/mine: 6 steps, ")


def test_a_time_limit_ends_a_run(lmr: Callable[..., Said], pairs_path: Path, start: Path) -> None:
    done = lmr("tune", pairs_path, "--from", start, "--output", "o", "--max-time", "0.2s", "-q")
    assert done.code == 0
    assert "(max_time)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("absent", "--output", "o"), ["absent", "no such file or folder"]),
        (("notes", "--output", "o", "--from", "giant"), ["giant", "no such checkpoint folder"]),
        (("notes", "--output", "o", "--from", "START"), ["notes: too little to tune on", "at least 50 are needed"]),
        (("notes", "--output", "o", "--from", "START", "--resume"), ["nothing to resume"]),
        (("notes", "--output", "o", "--max-time", "soon"), ["'soon' is not a duration"]),
        (("notes", "--output", "o", "--config", "none.toml"), ["none.toml", "no such configuration file"]),
        (("notes", "--output", "o", "--set", "tuning.temprature=1"), ["tuning.temprature", "temperature"]),
        (("CORPUS", "--output", "o", "--from", "START", "--labels", "best"), ["--labels best", "splits found: none"]),
        (("CORPUS", "--output", "o", "--from", "START", "--teacher", "notes"), ["notes", "modules.json", "'lsi'"]),
        (("CORPUS", "--output", "o", "--from", "START", "--device", "abacus"), ["abacus", "unknown"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_and_exit_code_one(
    lmr: Callable[..., Said],
    notes: Path,
    corpus_path: Path,
    start: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    parts: list[str],
) -> None:
    places = {"START": start, "CORPUS": corpus_path}
    said = lmr("tune", *(places.get(argument, argument) for argument in arguments), "-q")
    assert (said.code, said.stdout) == (1, "")
    assert said.stderr.startswith("Error: ")
    assert said.stderr.count("\n") == 1
    assert [part for part in parts if part not in said.stderr] == []
    assert not (tmp_path / "o").exists()


def test_wrong_usage_is_exit_code_two(lmr: Callable[..., Said]) -> None:
    said = lmr("tune", "notes")
    assert said.code == 2
    assert "--output" in said.stderr
