"""What `tune` leaves behind, an encoder like any other, and its command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Said, make_texts
from tuning_helpers import SHORT, run

from lm_retrieval.checkpoint import Checkpoint, weights_fingerprint
from lm_retrieval.config import EncoderConfig
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CheckpointError, ConfigError, StorageError
from lm_retrieval.index.builder import build_index
from lm_retrieval.search import Searcher
from lm_retrieval.tuning.run import tuning_config

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


# ---------------------------------------------------------------- command line


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
