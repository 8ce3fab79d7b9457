"""The trainer: it learns, resumes exactly, accumulates exactly, stops as told and never leaves a damaged folder."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, make_texts, write_jsonl

from lm_retrieval.checkpoint import Checkpoint, is_checkpoint
from lm_retrieval.cli.train import stop_on_signals
from lm_retrieval.config import RunConfig, TrainingConfig, load_config
from lm_retrieval.corpus import open_corpus
from lm_retrieval.errors import CheckpointError, ConfigError, MismatchError, TrainingError
from lm_retrieval.perplexity import perplexity
from lm_retrieval.training.batches import SegmentBatches, TokenStream
from lm_retrieval.training.curves import read_metrics
from lm_retrieval.training.objectives import NextTokenObjective
from lm_retrieval.training.optimizer import learning_rate
from lm_retrieval.training.run import train


@pytest.fixture
def corpus_path(tmp_path: Path) -> Path:
    rows = [{"_id": str(number), "text": text} for number, text in enumerate(make_texts(150, seed=1))]
    return write_jsonl(tmp_path / "corpus.jsonl", rows)


def config(*overrides: str, model: str = "lstm", precision: str = "float32", dropout: float = 0.1) -> RunConfig:
    sizes = {
        "lstm": ["model.embedding_dim=24", "model.hidden_dim=24"],
        "transformer": ["model.type=transformer", "model.embedding_dim=24", "model.num_heads=2", "model.num_layers=2"],
    }[model]
    common = [
        f"model.dropout={dropout}",
        "tokenizer.vocab_size=300",
        f"training.precision={precision}",
        "training.batch_size=4",
        "training.sequence_length_tokens=16",
        "training.max_steps=30",
        "training.max_epochs=1000",
        "training.eval_interval_steps=10",
        "training.log_interval_steps=5",
        "training.warmup_steps=5",
        "training.learning_rate=0.01",
        "training.sample_tokens=5",
    ]
    return load_config(overrides=[*sizes, *common, *overrides])


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(int(record["step"]), record["loss"]) for record in read_metrics(folder) if "loss" in record]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(Checkpoint.load(folder).model.named_parameters())


@pytest.mark.parametrize("model", ["lstm", "transformer"])
def test_training_beats_the_uniform_distribution_by_far_and_the_report_agrees(
    corpus_path: Path, tmp_path: Path, model: str
) -> None:
    result = train(
        open_corpus(corpus_path), config=config("training.max_steps=150", model=model), output=tmp_path / "run"
    )
    checkpoint = Checkpoint.load(tmp_path / "run")
    assert result.metrics["validation_perplexity"] < checkpoint.tokenizer.vocab_size / 6
    held_out = [document.content for document in open_corpus(corpus_path).documents()][:20]
    report = perplexity(checkpoint.model, tokenizer=checkpoint.tokenizer, texts=held_out)
    assert report.perplexity < checkpoint.tokenizer.vocab_size / 6


@pytest.mark.parametrize("model", ["lstm", "transformer"])
def test_a_resumed_run_equals_the_uninterrupted_one(corpus_path: Path, tmp_path: Path, model: str) -> None:
    settings = config(model=model)
    train(open_corpus(corpus_path), config=settings, output=tmp_path / "whole")
    calls = iter(range(1000))
    first = train(
        open_corpus(corpus_path), config=settings, output=tmp_path / "parts", should_stop=lambda: next(calls) >= 13
    )
    assert first.reason == "interrupted"
    assert first.position.step == 13
    second = train(open_corpus(corpus_path), config=settings, output=tmp_path / "parts", resume=True)
    assert second.reason == "max_steps"
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "parts")[name]), name


def test_resuming_after_a_kill_drops_what_was_logged_after_the_save(corpus_path: Path, tmp_path: Path) -> None:
    settings = config()
    calls = iter(range(1000))
    train(open_corpus(corpus_path), config=settings, output=tmp_path / "run", should_stop=lambda: next(calls) >= 12)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 20, "tokens": 1, "loss": 99.0}) + "\n")
    train(open_corpus(corpus_path), config=settings, output=tmp_path / "run", resume=True)
    assert [step for step, _ in losses(tmp_path / "run")] == [5, 10, 15, 20, 25, 30]
    assert all(loss < 99 for _, loss in losses(tmp_path / "run"))


def test_accumulation_gives_the_same_run_as_whole_batches(corpus_path: Path, tmp_path: Path) -> None:
    train(open_corpus(corpus_path), config=config(dropout=0.0), output=tmp_path / "whole")
    parts = config("training.accumulation_steps=2", dropout=0.0)
    train(open_corpus(corpus_path), config=parts, output=tmp_path / "parts")
    for (_, whole), (_, part) in zip(losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True):
        assert part == pytest.approx(whole, rel=1e-4)


def test_bfloat16_training_follows_float32(corpus_path: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        settings = config(precision=precision, dropout=0.0)
        train(open_corpus(corpus_path), config=settings, output=tmp_path / precision)
    pairs = zip(losses(tmp_path / "float32"), losses(tmp_path / "bfloat16"), strict=True)
    assert all(low == pytest.approx(high, rel=0.03) for (_, high), (_, low) in pairs)


def test_a_loss_that_is_no_number_stops_with_advice_and_keeps_the_last_good_checkpoint(
    corpus_path: Path, tmp_path: Path
) -> None:
    train(open_corpus(corpus_path), config=config(), output=tmp_path / "run")
    good = (tmp_path / "run" / "model.safetensors").read_bytes()
    state = torch.load(tmp_path / "run" / "trainer.pt", weights_only=True)
    state["objective"]["model.embedding.weight"].fill_(math.nan)
    torch.save(state, tmp_path / "run" / "trainer.pt")
    with pytest.raises(TrainingError, match=r"step 31: the loss is no longer a finite number.*learning_rate"):
        train(open_corpus(corpus_path), config=config("training.max_steps=40"), output=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == good


def test_budgets(corpus_path: Path, tmp_path: Path) -> None:
    def run(name: str, *overrides: str) -> tuple[str, Any]:
        result = train(open_corpus(corpus_path), config=config(*overrides), output=tmp_path / name)
        return result.reason, result.position

    reason, position = run("tokens", "training.max_tokens=640")
    assert (reason, position.tokens) == ("max_tokens", 640)
    reason, position = run("epochs", "training.max_steps=100000", "training.max_epochs=1", "training.batch_size=16")
    assert reason == "max_epochs"
    reason, position = run("time", "training.max_steps=100000", "training.max_time_seconds=0.5")
    assert reason == "max_time"
    assert 0.4 < position.elapsed_seconds < 10
    reason, position = run(
        "patience", "training.max_steps=5000", "training.patience_evaluations=2", "training.learning_rate=3.0"
    )
    assert reason == "patience"


def test_the_best_weights_are_kept_beside_the_last(corpus_path: Path, tmp_path: Path) -> None:
    # a rate that blows the model up after a good start
    settings = config("training.max_steps=40", "training.learning_rate=0.02", "training.eval_interval_steps=4")
    result = train(open_corpus(corpus_path), config=settings, output=tmp_path / "run")
    evaluations = {r["step"]: r["validation_loss"] for r in read_metrics(tmp_path / "run") if "validation_loss" in r}
    assert result.position.best_loss == min(evaluations.values()) == evaluations[result.position.best_step]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    expected = (
        "README.md config.json last.safetensors loss.svg manifest.json metrics.jsonl model.safetensors tokenizer.model"
    )
    assert names == {*expected.split(), "trainer.pt"}
    assert "<svg" in (tmp_path / "run" / "loss.svg").read_text()


def test_samples_of_text_are_logged_at_each_evaluation(corpus_path: Path, tmp_path: Path) -> None:
    train(open_corpus(corpus_path), config=config("training.sample_prompt=the river"), output=tmp_path / "run")
    samples = [record["sample"] for record in read_metrics(tmp_path / "run") if "sample" in record]
    assert len(samples) == 3
    assert all(str(sample).startswith("the river") for sample in samples)


def test_a_trained_model_goes_on_with_new_text(corpus_path: Path, tmp_path: Path) -> None:
    train(open_corpus(corpus_path), config=config("training.max_steps=60"), output=tmp_path / "first")
    start = Checkpoint.load(tmp_path / "first")
    settings = config("training.max_steps=10", "training.eval_interval_steps=1", "model.hidden_dim=99")
    train(open_corpus(corpus_path), config=settings, output=tmp_path / "second", start=start)
    assert read_metrics(tmp_path / "second")[0]["validation_loss"] < 4.0
    second = Checkpoint.load(tmp_path / "second")
    assert second.tokenizer.fingerprint == start.tokenizer.fingerprint
    assert second.config.model == start.config.model


def test_folders_are_not_overwritten_and_resuming_needs_the_same_run(corpus_path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(open_corpus(corpus_path), config=config(), output=tmp_path / "run", resume=True)
    train(open_corpus(corpus_path), config=config(), output=tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds a checkpoint already.*--resume"):
        train(open_corpus(corpus_path), config=config(), output=tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot resume with another training.batch_size"):
        train(open_corpus(corpus_path), config=config("training.batch_size=8"), output=tmp_path / "run", resume=True)
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": text} for text in make_texts(150, seed=9)])
    with pytest.raises(MismatchError, match="began on other text"):
        train(open_corpus(other), config=config("training.max_steps=50"), output=tmp_path / "run", resume=True)


def test_too_little_text_is_said(tmp_path: Path) -> None:
    short = write_jsonl(tmp_path / "short.jsonl", [{"text": "a few words"}])
    with pytest.raises(TrainingError, match=r"only \d+ tokens of text"):
        train(open_corpus(short), config=config(), output=tmp_path / "run")


def test_an_interrupted_folder_is_a_complete_checkpoint(corpus_path: Path, tmp_path: Path) -> None:
    result = train(open_corpus(corpus_path), config=config(), output=tmp_path / "run", should_stop=lambda: True)
    assert result.position.step == 0 or result.reason == "interrupted"
    assert is_checkpoint(tmp_path / "run")
    Checkpoint.load(tmp_path / "run")


def test_the_held_out_split_is_by_document_and_fixed(corpus_path: Path, tmp_path: Path, tokenizer: Any) -> None:
    from lm_retrieval.training.batches import split_documents

    def split(folder: str) -> tuple[TokenStream, TokenStream]:
        documents = open_corpus(corpus_path).documents()
        return split_documents(documents, tokenizer=tokenizer, folder=tmp_path / folder, validation_fraction=0.2)

    (training, held_out), again = split("a"), split("b")
    assert training.documents + held_out.documents == 150
    assert 15 <= held_out.documents <= 45
    assert (training.fingerprint, held_out.fingerprint) == (again[0].fingerprint, again[1].fingerprint)
    for stream in (training, held_out):
        assert stream.token_ids[0] == tokenizer.bos_id
        assert stream.token_ids[-1] == tokenizer.eos_id
        assert int((stream.token_ids == tokenizer.bos_id).sum()) == stream.documents


def test_rows_go_on_where_they_stopped_and_targets_are_one_further() -> None:
    stream = TokenStream(np.arange(1000, dtype=np.uint16), 1000, 1, "x")
    batches = SegmentBatches(stream, batch_size=3, sequence_length=10, seed=4)
    for epoch in (0, 1):
        previous = batches.batch(epoch, 0)[0]
        for step in range(1, batches.steps_per_epoch):
            current = batches.batch(epoch, step)[0]
            assert torch.equal(current[:, 0], previous[:, -1])
            assert torch.equal(current[:, 1:], current[:, :-1] + 1)
            previous = current
    assert not torch.equal(batches.batch(0, 0)[0], batches.batch(1, 0)[0])
    assert torch.equal(
        batches.batch(1, 2)[0], SegmentBatches(stream, batch_size=3, sequence_length=10, seed=4).batch(1, 2)[0]
    )


def test_evaluation_equals_the_cross_entropy_of_the_stream(checkpoint: Checkpoint) -> None:
    ids = np.asarray(checkpoint.tokenizer.encode(" ".join(make_texts(40, seed=3))), dtype=np.uint16)
    stream = TokenStream(ids, len(ids), 1, "x")
    objective = NextTokenObjective(
        checkpoint.model, validation=stream, sequence_length=16, max_tokens=10_000, carry_state=True
    )
    total, count, state = 0.0, 0, None
    for step in range(objective.steps):
        batch = objective.batches.batch(0, step)[0]
        with torch.no_grad():
            output = checkpoint.model(batch[:, :-1], state)
        state = output.state
        logits = checkpoint.model.logits(output.hidden).detach()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
        count += batch[:, 1:].numel()
    assert objective.evaluate().loss == pytest.approx(total / count, rel=1e-5)


def test_the_learning_rate_warms_up_and_decays_to_its_floor() -> None:
    settings = TrainingConfig(learning_rate=1.0, warmup_steps=10, min_learning_rate_ratio=0.1)
    assert learning_rate(0, progress=0.0, config=settings) == pytest.approx(0.1)
    assert learning_rate(9, progress=0.0, config=settings) == pytest.approx(1.0)
    assert learning_rate(500, progress=0.5, config=settings) == pytest.approx(0.55)
    assert learning_rate(900, progress=1.0, config=settings) == pytest.approx(0.1)


def test_ctrl_c_saves_and_says_how_to_go_on(corpus_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lm_retrieval", "train", str(ROOT / "configs" / "smoke.toml")]
    command += ["--corpus", str(corpus_path), "--output", str(tmp_path / "run"), "--set", "training.max_steps=100000"]
    command += ["--set", "training.max_epochs=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "LMR_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "saved; go on with the same command and --resume" in said
    assert is_checkpoint(tmp_path / "run")


def test_before_the_first_step_the_first_ctrl_c_ends_the_run() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        signal.raise_signal(signal.SIGINT)
    with stop_on_signals() as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGTERM)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_run_that_began_from_a_checkpoint_resumes(corpus_path: Path, tmp_path: Path) -> None:
    train(open_corpus(corpus_path), config=config(), output=tmp_path / "first")
    start = Checkpoint.load(tmp_path / "first")
    settings = config("model.hidden_dim=99")
    calls = iter(range(1000))
    train(
        open_corpus(corpus_path),
        config=settings,
        output=tmp_path / "second",
        start=start,
        should_stop=lambda: next(calls) >= 7,
    )
    result = train(open_corpus(corpus_path), config=settings, output=tmp_path / "second", start=start, resume=True)
    assert (result.reason, result.position.step) == ("max_steps", 30)


def test_one_large_document_that_would_be_held_out_is_split_instead(tmp_path: Path, tokenizer: Any) -> None:
    from lm_retrieval.records import Document
    from lm_retrieval.training.batches import split_documents

    text = " ".join(make_texts(100, seed=2))
    for name in ("a", "b", "c", "d", "e", "f"):
        documents = [Document("tiny", "", "a word"), Document(name, "", text)]
        streams = split_documents(documents, tokenizer=tokenizer, folder=tmp_path / name, validation_fraction=0.4)
        assert len(streams[0].token_ids) > len(streams[1].token_ids) > 100


def test_samples_with_line_separators_do_not_break_the_log(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "sample": "a\u2028b"}\n{"step": 2, "sam', encoding="utf-8")
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]


def test_rows_that_cannot_be_divided_are_refused_and_little_text_is_rounded(corpus_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size 4 cannot be divided into 3 micro-batches"):
        train(open_corpus(corpus_path), config=config("training.accumulation_steps=3"), output=tmp_path / "a")
    few = write_jsonl(tmp_path / "few.jsonl", [{"_id": str(n), "text": text} for n, text in enumerate(make_texts(7))])
    settings = config("training.batch_size=64", "training.accumulation_steps=4", "training.max_steps=2")
    assert train(open_corpus(few), config=settings, output=tmp_path / "b").position.step == 2
