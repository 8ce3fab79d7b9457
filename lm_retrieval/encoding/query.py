"""Encoding queries without torch, whose import alone takes longer than a search.

The torch model is what decides a vector; this is the same arithmetic in NumPy for one short text at a time, reading
only the weights and the rows of tables that the text needs. `lmr embed` compares both on texts of the corpus when it
builds an index, and an index says in its manifest whether queries may be encoded here.

Shapes: T tokens, D hidden, E dimensions of a vector, H heads.
"""

import json
import math
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lm_retrieval.artifacts import storage_errors
from lm_retrieval.encoding.transform import Transform, unit_vectors
from lm_retrieval.errors import CheckpointError
from lm_retrieval.tokenizer import Tokenizer

Array = NDArray[np.float32]

_NORM_EPSILON = 1e-5
_SCALE_SUFFIX = ".scale"
_ADVICE = "restore it, or run `lmr embed CORPUS --encoder NAME --rebuild`"


class QueryEncoder:
    """A checkpoint folder, read as far as queries need it.

    Attributes:
        max_seq_length: tokens of the longest text that can be encoded here.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a checkpoint folder.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        self.folder = folder
        with storage_errors(folder):
            try:
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                self._model_config: dict[str, Any] = config["model"]
                self._config: dict[str, Any] = config["encoder"]
                self.max_seq_length = int(
                    min(self._config["max_length_tokens"], self._model_config.get("max_length", math.inf))
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{folder}: damaged configuration ({error}); {_ADVICE}") from error
        self._model = _Weights(folder / "model.safetensors")

    @staticmethod
    def supports(model_type: str) -> bool:
        """Whether models of this type can be run here."""
        return model_type in _STATES

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return Tokenizer.load(self.folder / "tokenizer.model")

    def encode(self, texts: Sequence[str]) -> Array:
        """(N, E) float32 unit vectors of texts; see `encode_tokens`."""
        return self.encode_tokens(self.tokenizer.encode_batch(texts))

    def encode_tokens(self, token_ids: Sequence[NDArray[np.int32]]) -> Array:
        """(N, E) float32 unit vectors; a text without tokens is the zero vector.

        Raises:
            ValueError: a text of more than `max_seq_length` tokens.
            CheckpointError: damaged weights.
        """
        longest = max(map(len, token_ids), default=0)
        if longest > self.max_seq_length:
            raise ValueError(f"{longest} tokens; at most {self.max_seq_length} can be encoded here")
        with storage_errors(self.folder):
            try:
                vectors = [self._encode(ids) for ids in token_ids]
            except (SafetensorError, KeyError, ValueError) as error:
                raise CheckpointError(f"{self.folder}: damaged weights ({error}); {_ADVICE}") from error
        return unit_vectors(np.reshape(vectors, (len(token_ids), self._dim)))

    def _encode(self, token_ids: NDArray[np.int32]) -> Array:
        if not len(token_ids):
            return np.zeros(self._dim, np.float32)
        embedded, hidden = _STATES[self._model_config["type"]](self._model, self._model_config, token_ids)
        if self._config["pooling"] == "learned":
            vector = self._learned(token_ids, hidden)
        else:
            if self._config["layers"] == "first_last":
                hidden = np.asarray((hidden + embedded) / 2, np.float32)
            vector = _pool(hidden, self._config["pooling"])
        return vector if self._transform is None else self._transform(vector)

    @cached_property
    def _dim(self) -> int:
        if self._config["pooling"] == "learned":
            return int(self._pooling.shape("token_vectors")[1])
        return int(self._model_config.get("hidden_dim") or self._model_config["embedding_dim"])

    @cached_property
    def _pooling(self) -> "_Weights":
        return _Weights(self.folder / "pooling.safetensors")

    @cached_property
    def _transform(self) -> Transform | None:
        path = self.folder / "transform.safetensors"
        if not path.is_file():
            return None
        weights = _Weights(path)
        return Transform(weights["mean"], weights.find("matrix"))

    def _learned(self, token_ids: NDArray[np.integer], hidden: Array) -> Array:
        weights = np.exp(self._pooling.rows("log_weights", token_ids))
        weights /= max(weights.sum(), 1e-9)
        states = (weights @ hidden - self._pooling["state_mean"]) / self._pooling["state_scale"]
        return np.asarray(
            self._pooling["projection"] @ states + weights @ self._pooling.rows("token_vectors", token_ids)
        )


class _Weights:
    """Tensors of a safetensors file as float32, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; {_ADVICE}")
        try:
            opened: Any = safe_open(path, "numpy")
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged weights ({error}); {_ADVICE}") from error
        self._file = opened
        self._names = frozenset(opened.keys())
        self._read: dict[str, Array] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Array:
        if name not in self._read:
            tensor = self._file.get_tensor(name).astype(np.float32)
            if f"{name}{_SCALE_SUFFIX}" in self._names:  # stored in eight bits
                tensor *= self._file.get_tensor(f"{name}{_SCALE_SUFFIX}")[:, None]
            self._read[name] = tensor
        return self._read[name]

    def find(self, name: str) -> Array | None:
        return self[name] if name in self._names else None

    def shape(self, name: str) -> list[int]:
        return list(self._file.get_slice(name).get_shape())

    def rows(self, name: str, places: NDArray[np.integer]) -> Array:
        """Rows of a large table; the others are not read."""
        rows = self._slices(name, places)
        scale = f"{name}{_SCALE_SUFFIX}"
        return rows * self._slices(scale, places)[:, None] if scale in self._names else rows

    def _slices(self, name: str, places: NDArray[np.integer]) -> Array:
        table = self._file.get_slice(name)
        return np.concatenate([table[place : place + 1] for place in places.tolist()]).astype(np.float32)


def _lstm(weights: _Weights, config: dict[str, Any], token_ids: NDArray[np.integer]) -> tuple[Array, Array]:
    """(T,) ids → (T, D) embeddings and (T, D) states of the last layer."""
    embedded = weights.rows("embedding.weight", token_ids)
    layer_input = embedded
    for layer in range(config["num_layers"]):
        bias = weights[f"lstm.bias_ih_l{layer}"] + weights[f"lstm.bias_hh_l{layer}"]
        gates = layer_input @ weights[f"lstm.weight_ih_l{layer}"].T + bias  # (T, 4D): input, forget, cell, output
        recurrent = weights[f"lstm.weight_hh_l{layer}"]
        width = recurrent.shape[1]
        hidden, cell = np.zeros((2, width), np.float32)
        layer_output = np.empty((len(token_ids), width), np.float32)
        for step in range(len(gates)):
            gate = gates[step] + recurrent @ hidden
            keep_in, keep, write, read = gate[:width], gate[width : 2 * width], gate[2 * width : -width], gate[-width:]
            cell = _sigmoid(keep) * cell + _sigmoid(keep_in) * np.tanh(write)
            hidden = layer_output[step] = _sigmoid(read) * np.tanh(cell)
        layer_input = layer_output
    return embedded, layer_input


def _transformer(weights: _Weights, config: dict[str, Any], token_ids: NDArray[np.integer]) -> tuple[Array, Array]:
    """(T,) ids → (T, D) embeddings and (T, D) states of the last layer."""
    length = len(token_ids)
    scale = 1.0 if config["positions"] == "learned" else math.sqrt(config["embedding_dim"])
    embedded = weights.rows("embedding.weight", token_ids) * np.float32(scale)
    hidden = _linear(weights, "widen", embedded) if "widen.weight" in weights else embedded
    width, rotation = hidden.shape[1], None
    if config["positions"] == "learned":
        hidden = hidden + weights.rows("position_embedding.weight", np.arange(length))
    elif config["positions"] == "sinusoidal":
        hidden = hidden + _sinusoids(config["max_length"], width)[:length]
    else:
        rotation = _sinusoids(config["max_length"], width // config["num_heads"])[:length]
    pre_norm = config["norm"] == "pre"
    for layer in range(config["num_layers"]):
        block = f"blocks.{layer}"
        source = _layer_norm(weights, f"{block}.attention_norm", hidden) if pre_norm else hidden
        hidden = hidden + _attention(weights, block, source, config["num_heads"], rotation)
        hidden = hidden if pre_norm else _layer_norm(weights, f"{block}.attention_norm", hidden)
        source = _layer_norm(weights, f"{block}.feedforward_norm", hidden) if pre_norm else hidden
        inner = _linear(weights, f"{block}.feedforward_input", source)
        inner = _gelu(inner) if config["activation"] == "gelu" else np.maximum(inner, 0)
        hidden = hidden + _linear(weights, f"{block}.feedforward_output", inner)
        hidden = hidden if pre_norm else _layer_norm(weights, f"{block}.feedforward_norm", hidden)
    return embedded, _layer_norm(weights, "final_norm", hidden) if "final_norm.weight" in weights else hidden


_STATES = {"lstm": _lstm, "transformer": _transformer, "gpt": _transformer}


def _attention(weights: _Weights, block: str, source: Array, heads: int, rotation: Array | None) -> Array:
    length, width = source.shape
    parts = _linear(weights, f"{block}.attention_input", source).reshape(length, 3, heads, width // heads)
    queries, keys, values = parts.transpose(1, 2, 0, 3)  # (H, T, E) each
    if rotation is not None:
        queries, keys = _rotate(queries, rotation), _rotate(keys, rotation)
    scores = queries @ keys.transpose(0, 2, 1) / np.float32(math.sqrt(width // heads))
    scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = scores / scores.sum(-1, keepdims=True) @ values
    return _linear(weights, f"{block}.attention_output", mixed.transpose(1, 0, 2).reshape(length, width))


def _rotate(vectors: Array, rotation: Array) -> Array:
    sin, cos = np.split(rotation, 2, axis=1)
    first, second = np.split(vectors, 2, axis=2)
    return np.concatenate((first * cos - second * sin, first * sin + second * cos), axis=2)


@cache
def _sinusoids(length: int, width: int) -> Array:
    rates = np.exp(np.arange(width // 2, dtype=np.float32) * np.float32(-math.log(10_000.0) / (width // 2)))
    angles = np.arange(length, dtype=np.float32)[:, None] * rates
    return np.concatenate((np.sin(angles), np.cos(angles)), axis=1)


def _linear(weights: _Weights, name: str, inputs: Array) -> Array:
    return np.asarray(inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])


def _layer_norm(weights: _Weights, name: str, inputs: Array) -> Array:
    centred = inputs - inputs.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + np.float32(_NORM_EPSILON))
    return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])


def _sigmoid(values: Array) -> Array:
    return np.asarray(0.5 * np.tanh(0.5 * values) + 0.5, np.float32)


def _gelu(values: Array) -> Array:
    """x·Φ(x), Φ by formula 7.1.26 of Abramowitz & Stegun (error below 1.5e-7): NumPy has no error function."""
    size = np.abs(values) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + 0.3275911 * size)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    erf = np.sign(values) * (1 - series * np.exp(-(size**2)))
    return np.asarray(values * (1 + erf) / 2, np.float32)


def _pool(hidden: Array, mode: str) -> Array:
    """(T, D) → (D,); the modes are those of `encoding.pooling`."""
    if mode == "max":
        return np.asarray(hidden.max(0))
    if mode == "lasttoken":
        return np.asarray(hidden[-1])
    if mode == "weightedmean":
        shares = np.arange(1, len(hidden) + 1, dtype=np.float32)
        return np.asarray(shares @ hidden / shares.sum())
    total = hidden.sum(0)
    return np.asarray(total / (math.sqrt(len(hidden)) if mode == "mean_sqrt_len_tokens" else len(hidden)))
