"""`tune`: it learns, resumes exactly, leaves nothing half done, and knows its settings."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_texts, rows_of, write_jsonl
from tuning_helpers import SHORT, config, contents, evaluations, manifest, material, parameters, run

from lm_retrieval import checkpoint as checkpoint_module
from lm_retrieval.checkpoint import Checkpoint, find_checkpoint, save_checkpoint
from lm_retrieval.config import TokenizerConfig, TrainingConfig, load_config
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CheckpointError, ConfigError, MismatchError
from lm_retrieval.models import build_model
from lm_retrieval.tokenizer import Tokenizer
from lm_retrieval.training.curves import read_metrics
from lm_retrieval.tuning.run import tuning_config

WEIGHTS = ("model.safetensors", "pooling.safetensors", "last.safetensors")


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
    assert max(accuracies) > 0.95
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
    assert moved["pooling.projection"] == pytest.approx(0.001, rel=0.01)
    assert moved["lstm.weight_hh_l0"] == pytest.approx(0.01, rel=0.01)
    assert [moved[name] for name in ("output.weight", "output.bias", "pooling.state_scale")] == [0.0] * 3
    assert moved["pooling.state_mean"] > 0  # follows the states, without a gradient


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
    assert before == contents(tuned)


def test_an_output_that_holds_a_checkpoint_is_refused_and_kept(corpus_path: Path, start: Path, tuned: Path) -> None:
    before = contents(tuned)
    with pytest.raises(CheckpointError, match="holds a checkpoint already; add --resume"):
        run(corpus_path, start, tuned)
    assert contents(tuned) == before


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
