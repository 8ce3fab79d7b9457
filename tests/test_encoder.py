"""The encoder: one vector per text, whatever else is in the batch; nothing cut; stored and loaded whole."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_texts

from lm_retrieval.checkpoint import Checkpoint
from lm_retrieval.config import EncoderConfig
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CheckpointError, ConfigError

POOLINGS = ["mean", "weightedmean", "max", "lasttoken", "mean_sqrt_len_tokens"]
MIXED = ["short", "", *make_texts(9, seed=2), "a", " ".join(make_texts(12, seed=4)), "the river carries cold water."]


def plain_pooling(hidden: np.ndarray, mode: str) -> np.ndarray:
    """One text, no padding, no batch: (T, D) → (D,)."""
    if mode == "max":
        return hidden.max(0)
    if mode == "lasttoken":
        return hidden[-1]
    if mode == "weightedmean":
        weights = np.arange(1, len(hidden) + 1)
        return (hidden * weights[:, None]).sum(0) / weights.sum()
    return hidden.sum(0) / (np.sqrt(len(hidden)) if mode == "mean_sqrt_len_tokens" else len(hidden))


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("layers", ["last", "first_last"])
def test_a_vector_is_the_pooled_hidden_states_of_its_text(
    make_checkpoint: Callable[..., Path], kind: str, mode: str, layers: str
) -> None:
    encoder = Encoder.load(make_checkpoint(kind, pooling=mode, layers=layers), device="cpu", threads=1)
    text = "her violin paints green apples 12."
    ids = torch.tensor([encoder.tokenizer.encode(text)])
    with torch.no_grad():
        output = encoder.checkpoint.model(ids)
    hidden = output.hidden if layers == "last" else (output.hidden + output.embedded) / 2
    expected = plain_pooling(hidden[0].numpy(), mode)
    assert encoder.encode([*MIXED, text], normalize_embeddings=False)[-1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
@pytest.mark.parametrize("mode", POOLINGS)
def test_a_text_alone_and_in_any_batch_has_one_vector(
    make_checkpoint: Callable[..., Path], kind: str, mode: str
) -> None:
    encoder = Encoder.load(make_checkpoint(kind, pooling=mode), device="cpu", threads=1)
    together = encoder.encode(MIXED)
    alone = np.stack([encoder.encode(text) for text in MIXED])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    for options in ({"batch_size": 1}, {"batch_size": 3}, {"max_batch_tokens": 40}, {"max_batch_tokens": 1}):
        np.testing.assert_allclose(encoder.encode(MIXED, **options), alone, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(MIXED))
    np.testing.assert_allclose(encoder.encode([MIXED[place] for place in order]), alone[order], atol=1e-5)


def test_results_are_unit_float32_rows_in_input_order(encoder: Encoder) -> None:
    vectors = encoder.encode(MIXED)
    assert (vectors.dtype, vectors.shape, vectors.flags.c_contiguous) == (np.float32, (len(MIXED), encoder.dim), True)
    norms = np.linalg.norm(vectors, axis=1)
    assert norms[[place for place, text in enumerate(MIXED) if text]] == pytest.approx(1.0)
    assert norms[MIXED.index("")] == 0
    assert encoder.encode("a").shape == (encoder.dim,)
    assert encoder.encode([]).shape == (0, encoder.dim)


@pytest.mark.parametrize("mode", ["mean", "max", "lasttoken"])
def test_a_long_text_is_its_windows_combined_never_cut(make_checkpoint: Callable[..., Path], mode: str) -> None:
    encoder = Encoder.load(make_checkpoint(pooling=mode), device="cpu", threads=1)
    text = " ".join(make_texts(20, seed=8))
    ids = encoder.tokenizer.encode(text)
    size = encoder.max_seq_length
    assert len(ids) > 5 * size
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    parts = encoder.encode_tokens(pieces, normalize_embeddings=False)
    lengths = np.array([len(piece) for piece in pieces])[:, None]
    expected = {"mean": (parts * lengths).sum(0) / lengths.sum(), "max": parts.max(0), "lasttoken": parts[-1]}[mode]
    assert encoder.encode(text, normalize_embeddings=False) == pytest.approx(expected, abs=1e-5)
    changed = text[: -len(" measures glass 77.")] + " warms loud music 3."
    assert not np.allclose(encoder.encode(changed), encoder.encode(text), atol=1e-4)


def test_whitening_is_fitted_on_a_corpus_and_kept_with_the_encoder(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    raw = Encoder.load(make_checkpoint(postprocess="whiten"), device="cpu", threads=1)
    corpus = make_texts(400, seed=6, sentences=1)
    assert not raw.fitted
    fitted = raw.fit(corpus)
    assert fitted.fitted
    assert not raw.fitted
    vectors = fitted.encode(corpus, normalize_embeddings=False)
    covariance = np.cov(vectors.T, bias=True)
    assert np.abs(vectors.mean(0)).max() < 1e-3
    assert np.median(np.diag(covariance)) == pytest.approx(1.0, abs=0.35)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3
    fitted.save(tmp_path / "saved")
    loaded = Encoder.load(tmp_path / "saved", device="cpu", threads=1)
    np.testing.assert_array_equal(loaded.encode(corpus[:20]), fitted.encode(corpus[:20]))
    assert loaded.fingerprint == fitted.fingerprint
    assert loaded.fingerprint != raw.fingerprint
    assert loaded.base_fingerprint == raw.base_fingerprint


def test_an_unfitted_encoder_says_so(make_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    Encoder.load(make_checkpoint(postprocess="center"), device="cpu", threads=1).encode("text")
    assert "was not fitted on a corpus" in caplog.text


def test_centring_makes_the_mean_vector_zero(make_checkpoint: Callable[..., Path]) -> None:
    encoder = Encoder.load(make_checkpoint(postprocess="center"), device="cpu", threads=1).fit(make_texts(50))
    vectors = encoder.encode(make_texts(50), normalize_embeddings=False)
    assert np.abs(vectors.mean(0)).max() < 1e-5


def test_bfloat16_ranks_like_float32(checkpoint_path: Path) -> None:
    exact = Encoder.load(checkpoint_path, device="cpu", threads=1)
    low = Encoder.load(checkpoint_path, device="cpu", threads=1, dtype="bfloat16")
    texts = make_texts(50, seed=3)
    cosines = (exact.encode(texts) * low.encode(texts)).sum(1)
    assert low.encode(texts).dtype == np.float32
    assert cosines.min() > 0.999


def test_fingerprints_change_with_anything_that_changes_vectors(make_checkpoint: Callable[..., Path]) -> None:
    same = make_checkpoint(seed=1)
    prints = {
        Encoder.load(path, device="cpu", threads=1, config=config).fingerprint
        for path, config in (
            (same, None),
            (make_checkpoint(seed=2), None),
            (same, EncoderConfig(pooling="max", max_length_tokens=32, overlap_tokens=4)),
            (same, EncoderConfig(max_length_tokens=16, overlap_tokens=4)),
        )
    }
    assert len(prints) == 4
    assert Encoder.load(make_checkpoint(seed=1), device="cpu", threads=1).fingerprint in prints


def test_queries_and_documents_share_one_space_and_similarity_is_the_cosine(encoder: Encoder) -> None:
    texts = make_texts(4)
    np.testing.assert_array_equal(encoder.encode_query(texts), encoder.encode_document(texts))
    vectors = encoder.encode(texts, normalize_embeddings=False) * 3
    assert encoder.similarity(vectors, vectors).diagonal() == pytest.approx(1.0)
    assert encoder.get_embedding_dimension() == encoder.dim == 32


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": -2}, {"max_batch_tokens": 0}, {"precision": "int8"}]
)
def test_arguments_that_cannot_be_used_are_refused(encoder: Encoder, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        encoder.encode(["text"], **options)  # type: ignore[arg-type]


def test_unknown_devices_and_too_small_corpora_are_refused(
    checkpoint_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match="unknown"):
        Encoder.load(checkpoint_path, device="abacus")
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        Encoder.load(checkpoint_path, device="cpu", dtype="float16")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="not available"):
            Encoder.load(checkpoint_path, device="cuda")
    with pytest.raises(ConfigError, match="at least two texts"):
        Encoder.load(make_checkpoint(postprocess="whiten"), device="cpu", threads=1).fit(["only one", ""])


def test_a_damaged_transform_is_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    Encoder.load(make_checkpoint(postprocess="center"), device="cpu", threads=1).fit(make_texts(9)).save(tmp_path / "e")
    path = tmp_path / "e" / "transform.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="damaged transform"):
        Encoder.load(tmp_path / "e", device="cpu", threads=1)


def test_an_encoder_is_a_checkpoint_that_still_generates(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "e")
    loaded = Checkpoint.load(tmp_path / "e")
    for name, tensor in encoder.checkpoint.model.named_parameters():
        assert torch.equal(dict(loaded.model.named_parameters())[name], tensor)
