"""The encoder: a language model, a pooling and a transform make one vector per text.

Shapes: N texts, W windows, B batch, T tokens, D dimensions.
"""

import json
import logging
import random
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lm_retrieval.artifacts import atomic_file, sha256_bytes, storage_errors
from lm_retrieval.checkpoint import Checkpoint, save_checkpoint, stored_dtype, weights_fingerprint
from lm_retrieval.config import EncoderConfig
from lm_retrieval.encoding.batching import token_budget_batches
from lm_retrieval.encoding.pooling import pool
from lm_retrieval.encoding.transform import Transform, fit_transform, unit_vectors
from lm_retrieval.errors import CheckpointError, ConfigError
from lm_retrieval.models import LanguageModel
from lm_retrieval.models.precision import in_precision, rounded_to_int8
from lm_retrieval.progress import progress, silent
from lm_retrieval.runtime import Precision, configure_torch, resolve_device
from lm_retrieval.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

TRANSFORM_NAME = "transform.safetensors"
MAX_BATCH_TOKENS = 8192
_FIT_TEXTS = 4096
_FIT_BATCH = 2048

Vectors = NDArray[np.float32]


class Encoder:
    """Turns texts into unit vectors of `dim` float32 numbers.

    Attributes:
        dim: length of a vector.
        config: pooling, layers, postprocess, window.
        fitted: False while `config.postprocess` asks for a transform that no corpus has been fitted for.
        dtype: what the model computes in, as it was asked for.
        model: the checkpoint's language model, or a copy of it in another dtype.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        config: EncoderConfig | None = None,
        transform: Transform | None = None,
        dtype: Precision = "float32",
    ) -> None:
        """Wraps a loaded checkpoint; most callers want `Encoder.load`."""
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.model = in_precision(checkpoint.model, dtype)
        self.config = config or checkpoint.config.encoder
        self.transform = transform
        self.dim = checkpoint.model.hidden_dim
        self._learned = checkpoint.pooling if self.config.pooling == "learned" else None
        if self._learned is not None:
            self.dim = self._learned.dim
            if dtype == "int8":
                self._learned = rounded_to_int8(self._learned)
        elif self.config.pooling == "learned":
            raise ConfigError(f"{checkpoint.path}: pooling 'learned' needs an encoder made by `lmr tune`")
        if self.config.layers == "first_last" and _embedding_dim(checkpoint.model) != self.dim:
            raise ConfigError("layers 'first_last' needs a model whose embedding and hidden layer have one width")

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        device: str = "auto",
        threads: int | None = None,
        dtype: Precision = "float32",
        config: EncoderConfig | None = None,
    ) -> "Encoder":
        """Loads an encoder from a checkpoint folder.

        Args:
            path: the folder, or the name of one in `checkpoints/` or of a shipped encoder, such as `lstm-base`.
            device: `auto`, `cpu` or `cuda`.
            threads: CPU threads; default LMR_THREADS, then every core the container has.
            dtype: of the model's weights and activations; `auto` is bfloat16 where that is fast. `int8` rounds all
                weights to eight bits and computes as `auto`. Pooling and vectors are float32 in any case.
            config: replaces the checkpoint's encoder section; a stored transform is then not used.

        Raises:
            CheckpointError: the folder is missing, damaged or inconsistent.
            ConfigError: an unknown device.
        """
        configure_torch(threads)
        target = resolve_device(device)
        checkpoint = Checkpoint.load(path, device=str(target))
        encoder = cls(checkpoint, config=config, dtype=dtype)
        if config is None:
            encoder.transform = _load_transform(checkpoint.path / TRANSFORM_NAME, encoder.dim)
        return encoder

    @property
    def name(self) -> str:
        """How reports call this encoder: the checkpoint's name."""
        return self.checkpoint.name

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def parameter_count(self) -> int:
        """Numbers in the language model and, where there is one, the learned pooling."""
        parts = (self.checkpoint.model, self._learned)
        return sum(parameter.numel() for part in parts if part is not None for parameter in part.parameters())

    @property
    def fitted(self) -> bool:
        """Whether vectors come out as `config.postprocess` says."""
        return self.config.postprocess == "none" or self.transform is not None

    @property
    def max_seq_length(self) -> int:
        """Tokens that are encoded at once; longer texts are encoded in windows and averaged."""
        window = self.config.max_length_tokens
        return min(window, self.checkpoint.model.context_length or window)

    @property
    def base_fingerprint(self) -> str:
        """SHA-256 of weights, tokenizer and pooling, without the fitted transform."""
        settings = json.dumps(self.config.model_dump(mode="json"), sort_keys=True)
        return sha256_bytes(weights_fingerprint(self.checkpoint).encode(), settings.encode())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides a vector."""
        transform = b"" if self.transform is None else self.transform.to_bytes()
        return sha256_bytes(self.base_fingerprint.encode(), transform)

    def get_embedding_dimension(self) -> int:
        """Length of a vector."""
        return self.dim

    def encode(
        self,
        inputs: str | Sequence[str],
        *,
        batch_size: int | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        show_progress_bar: bool = False,
        normalize_embeddings: bool | None = None,
        precision: str = "float32",
        convert_to_numpy: bool = True,
    ) -> Vectors:
        """Encodes texts; argument names are sentence-transformers'.

        A text gets the same vector alone and in any batch (within 1e-5 in float32). A text longer than
        `max_seq_length` tokens is encoded in windows whose vectors are combined by length, never cut.

        Args:
            inputs: one text, or several.
            batch_size: most texts of a batch; by default only `max_batch_tokens` limits it.
            max_batch_tokens: padded tokens of a batch.
            show_progress_bar: log progress to stderr when logging is on.
            normalize_embeddings: unit length; by default as the encoder's configuration says.
            precision: only float32 vectors are made.
            convert_to_numpy: only NumPy arrays are made.

        Returns:
            (D,) float32 for one text, (N, D) in input order for several. A text without tokens is the zero vector.

        Raises:
            ConfigError: an argument that cannot be used.
        """
        if min(1 if batch_size is None else batch_size, max_batch_tokens) < 1:
            raise ConfigError("batch_size and max_batch_tokens must be at least 1")
        if precision != "float32" or not convert_to_numpy:
            raise ConfigError("vectors are float32 NumPy arrays; convert them afterwards")
        single = isinstance(inputs, str)
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        vectors = self.encode_tokens(
            self.tokenizer.encode_batch(texts),
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            normalize_embeddings=normalize_embeddings,
            show_progress=show_progress_bar,
        )
        return vectors[0] if single else vectors

    def encode_query(self, inputs: str | Sequence[str], **options: Any) -> Vectors:
        """As `encode`: queries and documents share one space."""
        return self.encode(inputs, **options)

    def encode_document(self, inputs: str | Sequence[str], **options: Any) -> Vectors:
        """As `encode`: queries and documents share one space."""
        return self.encode(inputs, **options)

    def similarity(self, first: Vectors, second: Vectors) -> Vectors:
        """(N, D), (M, D) → (N, M) cosine similarities."""
        return unit_vectors(np.atleast_2d(first)) @ unit_vectors(np.atleast_2d(second)).T

    def encode_tokens(
        self,
        token_ids: Sequence[Sequence[int] | NDArray[np.int32]],
        *,
        batch_size: int | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        normalize_embeddings: bool | None = None,
        show_progress: bool = False,
    ) -> Vectors:
        """As `encode`, for texts that are token ids already."""
        if not self.fitted:
            logger.warning(
                "encoder '%s' asks for postprocess '%s' but was not fitted on a corpus; vectors are raw",
                self.name,
                self.config.postprocess,
            )
        vectors = self._pooled(token_ids, batch_size, max_batch_tokens, show_progress)
        filled = np.fromiter((len(ids) > 0 for ids in token_ids), dtype=bool, count=len(token_ids))
        if self.transform is not None:
            vectors = self.transform(vectors)
            vectors[~filled] = 0
        normalize = self.config.normalize if normalize_embeddings is None else normalize_embeddings
        return np.ascontiguousarray(unit_vectors(vectors) if normalize else vectors, dtype=np.float32)

    def fit(self, texts: Iterable[str]) -> "Encoder":
        """An encoder whose transform is fitted on these texts; this one stays as it is.

        Where there are more than 4,096 texts an even sample of so many is used.

        Raises:
            ConfigError: fewer than two texts with content.
        """
        token_ids = (ids for ids in map(self.tokenizer.encode, texts) if ids)
        return self.fit_tokens(token_ids)

    def fit_tokens(self, token_ids: Iterable[Sequence[int]]) -> "Encoder":
        """As `fit`, for texts that are token ids already."""
        sample = _sample(token_ids, _FIT_TEXTS)
        batches = (
            self._pooled(sample[start : start + _FIT_BATCH], None, MAX_BATCH_TOKENS, False)
            for start in range(0, len(sample), _FIT_BATCH)
        )
        transform = fit_transform(batches, method=self.config.postprocess)
        return Encoder(self.checkpoint, config=self.config, transform=transform, dtype=self.dtype)

    def save(self, path: Path | str, *, dtype: torch.dtype | None = None) -> None:
        """Writes the encoder as a checkpoint folder that `Encoder.load` and every command read.

        Args:
            path: the folder.
            dtype: what the weights are stored as: torch.float32, torch.float16 or torch.int8; by default what the
                checkpoint's are.

        Raises:
            StorageError: the file system refused.
        """
        folder = Path(path)
        checkpoint = self.checkpoint
        if self.transform is not None:
            tensors = {"mean": self.transform.mean}
            if self.transform.matrix is not None:
                tensors["matrix"] = self.transform.matrix
            with atomic_file(folder / TRANSFORM_NAME, "wb") as stream:
                stream.write(save(tensors))
        else:
            with storage_errors(folder):
                (folder / TRANSFORM_NAME).unlink(missing_ok=True)
        facts = ("kind", "format_version", "lm_retrieval_version", "weights_sha256", "parameters", "dim")
        save_checkpoint(
            folder,
            model=checkpoint.model,
            tokenizer=checkpoint.tokenizer,
            pooling=checkpoint.pooling,
            config=checkpoint.config.model_copy(update={"encoder": self.config}),
            dtype=dtype or stored_dtype(checkpoint),
            summary={key: value for key, value in checkpoint.manifest.items() if key not in facts},
        )

    @torch.inference_mode()
    def _pooled(
        self,
        token_ids: Sequence[Sequence[int] | NDArray[np.int32]],
        batch_size: int | None,
        max_batch_tokens: int,
        show_progress: bool,
    ) -> Vectors:
        """(N, D) pooled states before the transform; everything up to them stays on the device."""
        windows, owners = self._windows(token_ids)
        lengths = np.fromiter((len(ids) for ids in windows), dtype=np.int64, count=len(windows))
        batches = token_budget_batches(lengths, max_batch_tokens=max_batch_tokens, max_batch_size=batch_size)
        device = self.model.device
        pooled = torch.zeros(len(windows), self.dim, device=device)
        with progress("encoding", total=len(windows)) if show_progress else nullcontext(silent) as advance:
            for places in batches:
                if lengths[places[0]]:
                    pooled[torch.from_numpy(places).to(device)] = self._pool_batch(windows, lengths, places)
                advance(len(places))
        vectors = pooled.cpu().numpy()
        return vectors if len(windows) == len(token_ids) else self._combine(vectors, owners, lengths, len(token_ids))

    def _pool_batch(self, windows: list[Any], lengths: NDArray[np.int64], places: NDArray[np.int64]) -> torch.Tensor:
        """Pads to the longest of the batch and pools: (B, D) float32 on the device."""
        device = self.model.device
        padded = np.zeros((len(places), int(lengths[places[0]])), dtype=np.int64)
        for row, place in enumerate(places):
            padded[row, : lengths[place]] = windows[place]
        ids, counts = torch.from_numpy(padded), torch.from_numpy(lengths[places])
        if device.type == "cuda":
            ids, counts = ids.pin_memory(), counts.pin_memory()
        ids, counts = ids.to(device, non_blocking=True), counts.to(device, non_blocking=True)
        output = self.model(ids)
        hidden = output.hidden  # (B, T, D)
        if self._learned is not None:
            return torch.as_tensor(self._learned(hidden, ids, counts))
        if self.config.layers == "first_last":
            hidden = (hidden + output.embedded) / 2
        return pool(hidden, counts, mode=self.config.pooling)

    def _windows(self, token_ids: Sequence[Any]) -> tuple[list[Any], NDArray[np.int64]]:
        """Texts cut into windows, and the text each window belongs to."""
        size = self.max_seq_length
        windows, owners = [], []
        for place, ids in enumerate(token_ids):
            for start in range(0, max(1, len(ids)), size):
                windows.append(ids[start : start + size])
                owners.append(place)
        return windows, np.asarray(owners, dtype=np.int64)

    def _combine(self, vectors: Vectors, owners: NDArray[np.int64], lengths: NDArray[np.int64], count: int) -> Vectors:
        """Windows of one text become one vector: the largest, the last, or the mean weighted by length."""
        result = np.zeros((count, self.dim), dtype=np.float32)
        if self.config.pooling == "lasttoken":
            result[owners] = vectors  # a later window of the same text overwrites the earlier one
        elif self.config.pooling == "max":
            result.fill(-np.inf)
            np.maximum.at(result, owners, vectors)
        else:
            weights = np.maximum(lengths, 1).astype(np.float32)
            np.add.at(result, owners, vectors * weights[:, None])
            result /= np.bincount(owners, weights, minlength=count).astype(np.float32)[:, None]
        return result


def _load_transform(path: Path, dim: int) -> Transform | None:
    if not path.is_file():
        return None
    with storage_errors(path):
        try:
            tensors = load_file(path)
            transform = Transform(tensors["mean"], tensors.get("matrix"))
        except (SafetensorError, KeyError) as error:
            raise CheckpointError(
                f"{path}: damaged transform ({error}); restore it or fit the encoder again"
            ) from error
    if transform.mean.shape != (dim,) or (transform.matrix is not None and transform.matrix.shape != (dim, dim)):
        raise CheckpointError(f"{path}: the transform does not fit a model of {dim} dimensions; fit the encoder again")
    return transform


def _sample(token_ids: Iterable[Sequence[int]], wanted: int) -> list[Sequence[int]]:
    """An even sample of a stream (reservoir), the same one for the same stream."""
    generator = random.Random(0)
    kept: list[Sequence[int]] = []
    for seen, ids in enumerate(token_ids):
        if len(kept) < wanted:
            kept.append(ids)
        elif (place := generator.randrange(seen + 1)) < wanted:
            kept[place] = ids
    return kept


def _embedding_dim(model: LanguageModel) -> int:
    return next(
        (module.embedding_dim for module in model.modules() if isinstance(module, torch.nn.Embedding)), model.hidden_dim
    )
