"""Queries encoded without torch: the vectors of the torch encoder, for every model and setting it can have."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, make_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lm_retrieval.checkpoint import Checkpoint, build_pooling, save_checkpoint
from lm_retrieval.config import EncoderConfig, GptConfig, LstmConfig, ModelConfig, RunConfig, TransformerConfig
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.encoding.query import QueryEncoder
from lm_retrieval.errors import CheckpointError, StorageError, TokenizerError
from lm_retrieval.models import build_model
from lm_retrieval.tokenizer import Tokenizer

WINDOW = 24
STORED = (torch.float32, torch.float16, torch.int8)
POOLINGS = ("mean", "weightedmean", "max", "lasttoken", "mean_sqrt_len_tokens")
SHIPPED = ("lstm-base", "transformer-base")

LSTMS = {
    f"{layers} layers, {name}": LstmConfig(num_layers=layers, hidden_dim=24, **widths)
    for layers in (1, 2, 3)
    for name, widths in {
        "one width": {"embedding_dim": 24},
        "narrow table": {"embedding_dim": 8},
        "wide table": {"embedding_dim": 40},
        "tied": {"embedding_dim": 24, "tie_weights": True},
        "tied and narrowed": {"embedding_dim": 8, "tie_weights": True},
    }.items()
}
BLOCKS: dict[str, Any] = {"num_layers": 2, "num_heads": 3, "feedforward_dim": 40, "max_length": WINDOW}
TRANSFORMERS = {
    f"{norm} {positions} {activation}{' factorised' if factorised else ''}": TransformerConfig(
        norm=norm,
        positions=positions,
        activation=activation,
        embedding_dim=10 if factorised else 24,
        hidden_dim=24 if factorised else None,
        tie_weights=factorised,
        **BLOCKS,
    )
    for norm, positions, activation, factorised in product(
        ("pre", "post"), ("learned", "sinusoidal", "rotary"), ("gelu", "relu"), (False, True)
    )
}
GPTS = {
    "gpt": GptConfig(embedding_dim=24, **BLOCKS),
    "gpt tied rotary": GptConfig(embedding_dim=24, positions="rotary", tie_weights=True, **BLOCKS),
    "gpt factorised": GptConfig(embedding_dim=10, hidden_dim=24, **BLOCKS),
}
MODELS: dict[str, ModelConfig] = {**LSTMS, **TRANSFORMERS, **GPTS}
KINDS = ("2 layers, one width", "post sinusoidal relu", "pre rotary gelu", "gpt")


def randomise(module: torch.nn.Module) -> None:
    """Moves every parameter away from where it starts: biases are not zero, norms are not one."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def store(
    folder: Path, model: ModelConfig, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32, **encoder: Any
) -> Path:
    """Writes a checkpoint with random weights."""
    torch.manual_seed(1)
    built = build_model(model, vocab_size=tokenizer.vocab_size)
    randomise(built)
    chosen = EncoderConfig(**{"max_length_tokens": WINDOW, "overlap_tokens": 4, **encoder})
    pooling = None
    if chosen.pooling == "learned":
        pooling = build_pooling(built)
        randomise(pooling)
        pooling.state_scale.data.abs_().add_(0.1)
    config = RunConfig(model=model, encoder=chosen)
    save_checkpoint(folder, model=built, tokenizer=tokenizer, config=config, pooling=pooling, dtype=dtype)
    return folder


def every_length(vocab_size: int, window: int = WINDOW, *, seed: int = 2) -> list[np.ndarray]:
    """Random tokens: no text, one of every length up to a whole window, and no text again."""
    generator = np.random.default_rng(seed)
    lengths = [0, *range(1, window + 1), 0]
    return [generator.integers(0, vocab_size, length).astype(np.int32) for length in lengths]


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def assert_same_vectors(folder: Path, token_ids: Sequence[np.ndarray], exact: Encoder | None = None) -> None:
    exact = exact or Encoder.load(folder, device="cpu", threads=1)
    light = QueryEncoder(folder)
    expected = exact.encode_tokens(token_ids, normalize_embeddings=True)
    found = light.encode_tokens(token_ids)
    assert (found.dtype, found.shape) == (np.float32, (len(token_ids), exact.dim))
    assert light.max_seq_length == exact.max_seq_length
    filled = np.array([len(ids) > 0 for ids in token_ids])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), filled, atol=1e-5)
    assert np.abs(found - expected).max() <= 1e-4
    assert len(np.unique(found[filled].round(3), axis=0)) > 0.9 * filled.sum()  # texts are told apart


# ---------------------------------------------------------------- equal to the torch encoder


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_the_vectors_of_the_torch_encoder(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for dtype in STORED:
        folder = store(tmp_path / str(dtype), MODELS[name], tokenizer, dtype=dtype)
        assert_same_vectors(folder, every_length(tokenizer.vocab_size))


@pytest.fixture(scope="module", params=STORED, ids=str)
def checkpoints(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Checkpoint]:
    """One of each kind, all with a learned pooling that not every configuration uses."""
    base = tmp_path_factory.mktemp("kinds")
    folders = {
        name: store(base / name, MODELS[name], tokenizer, dtype=request.param, pooling="learned") for name in KINDS
    }
    return {name: Checkpoint.load(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("postprocess", ["none", "center", "whiten"])
def test_every_pooling_and_transform_gives_the_vectors_of_the_torch_encoder(
    checkpoints: dict[str, Checkpoint], postprocess: str, name: str, tmp_path: Path
) -> None:
    checkpoint = checkpoints[name]
    token_ids, sample = (every_length(checkpoint.tokenizer.vocab_size, seed=seed) for seed in (2, 3))
    for pooling, layers in [*product(POOLINGS, ("last", "first_last")), ("learned", "last")]:
        chosen: dict[str, Any] = {"pooling": pooling, "layers": layers, "postprocess": postprocess}
        config = checkpoint.config.encoder.model_copy(update=chosen)
        exact = Encoder(checkpoint, config=config).fit_tokens([ids.tolist() for ids in sample[1:-1]])
        folder = tmp_path / f"{pooling} {layers}"
        shutil.copytree(checkpoint.path, folder)
        edit(folder, lambda values, chosen=chosen: values["encoder"].update(chosen))
        if exact.transform is not None:
            parts = {"mean": exact.transform.mean, "matrix": exact.transform.matrix}
            save_file({key: part for key, part in parts.items() if part is not None}, folder / "transform.safetensors")
        assert (exact.transform is not None) == (postprocess != "none")
        assert_same_vectors(folder, token_ids, exact)


@pytest.mark.parametrize("name", ["post sinusoidal gelu factorised", "3 layers, tied and narrowed"])
def test_a_learned_pooling_follows_states_of_another_width_than_the_table(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for dtype in STORED:
        folder = store(tmp_path / str(dtype), MODELS[name], tokenizer, dtype=dtype, pooling="learned")
        assert_same_vectors(folder, every_length(tokenizer.vocab_size))


@pytest.mark.parametrize("name", KINDS)
def test_the_window_is_the_smaller_of_the_models_and_the_encoders(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for window in (WINDOW - 5, 5 * WINDOW):
        folder = store(tmp_path / str(window), MODELS[name], tokenizer, max_length_tokens=window)
        limit = QueryEncoder(folder).max_seq_length
        assert limit == (5 * WINDOW if window > WINDOW and "layers" in name else min(window, WINDOW))
        assert_same_vectors(folder, every_length(tokenizer.vocab_size, limit))


def test_vectors_have_unit_length_whatever_the_configuration_says(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = store(tmp_path / "raw", LSTMS["1 layers, one width"], tokenizer, normalize=False)
    assert_same_vectors(folder, every_length(tokenizer.vocab_size))


@pytest.mark.parametrize("name", KINDS)
def test_large_activations_do_not_overflow(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = build_model(MODELS[name], vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    config = RunConfig(model=MODELS[name], encoder=EncoderConfig(max_length_tokens=WINDOW, overlap_tokens=4))
    save_checkpoint(tmp_path / "m", model=model, tokenizer=tokenizer, config=config)
    assert_same_vectors(tmp_path / "m", every_length(tokenizer.vocab_size))


@pytest.fixture(scope="module")
def both(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Encoder, QueryEncoder]]:
    found = {}
    for name in KINDS:
        folder = store(tmp_path_factory.mktemp("both") / "m", MODELS[name], tokenizer, max_length_tokens=WINDOW)
        found[name] = Encoder.load(folder, device="cpu", threads=1), QueryEncoder(folder)
    return found


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(KINDS),
    texts=st.lists(
        st.text(max_size=12) | st.sampled_from(["", " ", "\n", "glass", "日本", "🎻", "▁", "a" * 20]), min_size=1
    ),
)
def test_any_text_has_the_vector_of_the_torch_encoder(
    both: dict[str, tuple[Encoder, QueryEncoder]], name: str, texts: list[str]
) -> None:
    exact, light = both[name]
    token_ids = light.tokenizer.encode_batch(texts)
    fitting = [text for text, ids in zip(texts, token_ids, strict=True) if len(ids) <= WINDOW]
    if fitting:
        assert np.abs(light.encode(fitting) - exact.encode(fitting)).max() <= 1e-4


def test_texts_of_one_call_do_not_touch_each_other(both: dict[str, tuple[Encoder, QueryEncoder]]) -> None:
    for _, light in both.values():
        token_ids = every_length(light.tokenizer.vocab_size)
        together = light.encode_tokens(token_ids)
        for place in (0, 1, 7, WINDOW, 7):  # asked again: nothing of an earlier text stays behind
            np.testing.assert_array_equal(light.encode_tokens([token_ids[place]])[0], together[place])


def test_a_text_without_tokens_is_the_zero_vector(both: dict[str, tuple[Encoder, QueryEncoder]]) -> None:
    for exact, light in both.values():
        np.testing.assert_array_equal(light.encode([""]), np.zeros((1, exact.dim), np.float32))
        np.testing.assert_array_equal(light.encode(["", ""]), np.zeros((2, exact.dim), np.float32))


def test_no_texts_have_no_vectors(both: dict[str, tuple[Encoder, QueryEncoder]]) -> None:
    for exact, light in both.values():
        assert light.encode([]).shape == exact.encode([]).shape == (0, exact.dim)


def test_more_tokens_than_the_window_are_refused_not_cut(both: dict[str, tuple[Encoder, QueryEncoder]]) -> None:
    for _, light in both.values():
        with pytest.raises(ValueError, match=f"{WINDOW + 1} tokens; at most {WINDOW}"):
            light.encode_tokens([np.zeros(WINDOW + 1, np.int32)])


def test_which_models_are_supported() -> None:
    assert [QueryEncoder.supports(kind) for kind in ("lstm", "transformer", "gpt", "bigram")] == [True] * 3 + [False]


# ---------------------------------------------------------------- the shipped encoders

QUESTIONS = [
    "merge two dictionaries",
    "How do I read a JSON file?",
    "naïve café — 日本語 🎻",
    "a",
    "",
    *make_texts(6, seed=3),
    " ".join(make_texts(9, seed=4)),
]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_encoders_give_the_vectors_of_the_torch_encoder(name: str, tmp_path: Path) -> None:
    shipped = ROOT / "checkpoints" / name
    exact = Encoder.load(shipped, device="cpu", threads=1)
    exact.save(tmp_path / "int8", dtype=torch.int8)
    generator = np.random.default_rng(4)
    lengths = (0, 1, 2, 3, 17, 100, exact.max_seq_length - 1, exact.max_seq_length)
    token_ids = exact.tokenizer.encode_batch(QUESTIONS)
    token_ids += [generator.integers(0, exact.tokenizer.vocab_size, n).astype(np.int32) for n in lengths]
    for folder in (shipped, tmp_path / "int8"):
        assert_same_vectors(folder, token_ids)


# ---------------------------------------------------------------- damaged folders


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.fixture(scope="module")
def whole(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with every part there is."""
    base = tmp_path_factory.mktemp("whole")
    raw = store(base / "raw", LSTMS["1 layers, one width"], tokenizer, pooling="learned", postprocess="whiten")
    Encoder.load(raw, device="cpu", threads=1).fit(make_texts(40, sentences=1)).save(base / "whole")
    return base / "whole"


@pytest.fixture(scope="module")
def other(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, whose files have the same names and other shapes."""
    model = LSTMS["1 layers, one width"].model_copy(update={"embedding_dim": 16, "hidden_dim": 16})
    return store(tmp_path_factory.mktemp("other") / "m", model, tokenizer, pooling="learned")


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "no weights": lambda folder, _: (folder / "model.safetensors").unlink(),
    "empty weights": lambda folder, _: cut(folder / "model.safetensors", 0),
    "beginning of the weights": lambda folder, _: cut(folder / "model.safetensors", 100),
    "weights without their end": lambda folder, _: cut(folder / "model.safetensors", -4),
    "no pooling": lambda folder, _: (folder / "pooling.safetensors").unlink(),
    "pooling without its end": lambda folder, _: cut(folder / "pooling.safetensors", -4),
    "transform without its end": lambda folder, _: cut(folder / "transform.safetensors", -4),
    "empty transform": lambda folder, _: cut(folder / "transform.safetensors", 0),
    "weights of another model": lambda folder, other: shutil.copy(other / "model.safetensors", folder),
    "pooling of another model": lambda folder, other: shutil.copy(other / "pooling.safetensors", folder),
    "a pooling for weights": lambda folder, _: shutil.copy(
        folder / "pooling.safetensors", folder / "model.safetensors"
    ),
    "weights for a transform": lambda folder, _: shutil.copy(
        folder / "model.safetensors", folder / "transform.safetensors"
    ),
    "too few layers": lambda folder, _: edit(folder, lambda values: values["model"].update(num_layers=2)),
    "no configuration": lambda folder, _: (folder / "config.json").unlink(),
    "half a configuration": lambda folder, _: cut(folder / "config.json", 50),
    "an empty configuration": lambda folder, _: cut(folder / "config.json", 0),
    "a list for a configuration": lambda folder, _: (folder / "config.json").write_text("[]"),
    "no model in the configuration": lambda folder, _: edit(folder, lambda values: values.pop("model")),
    "nothing for a model": lambda folder, _: edit(folder, lambda values: values.update(model=None)),
    "no type": lambda folder, _: edit(folder, lambda values: values["model"].pop("type")),
    "an unknown type": lambda folder, _: edit(folder, lambda values: values["model"].update(type="rnn")),
    "no pooling in the configuration": lambda folder, _: edit(folder, lambda values: values["encoder"].pop("pooling")),
    "no tokenizer": lambda folder, _: (folder / "tokenizer.model").unlink(),
    "half a tokenizer": lambda folder, _: cut(folder / "tokenizer.model", 1000),
    "no folder": lambda folder, _: shutil.rmtree(folder),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_an_error_of_one_line_that_names_it(
    whole: Path, other: Path, tmp_path: Path, damage: Callable[[Path, Path], object]
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(whole, folder)
    assert QueryEncoder(folder).encode(["the river"]).shape == (1, 256)
    damage(folder, other)
    with pytest.raises((CheckpointError, StorageError, TokenizerError), match=str(folder)) as raised:
        QueryEncoder(folder).encode(["the river"])
    assert "\n" not in str(raised.value)
