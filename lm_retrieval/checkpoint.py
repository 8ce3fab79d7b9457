"""A checkpoint: model + tokenizer + configuration in one folder, without a line of executable content."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lm_retrieval.artifacts import (
    MANIFEST_NAME,
    atomic_file,
    find_folder,
    read_manifest,
    sha256_bytes,
    sha256_file,
    storage_errors,
    write_json,
    write_manifest,
)
from lm_retrieval.config import RunConfig, parse_config
from lm_retrieval.errors import CheckpointError, ConfigError, TokenizerError
from lm_retrieval.models import LanguageModel, LearnedPooling, build_model
from lm_retrieval.models.precision import from_int8, in_precision, to_int8
from lm_retrieval.runtime import Precision
from lm_retrieval.storage import Location, RemotePath, is_uri, local_folder
from lm_retrieval.tokenizer import Tokenizer

CONFIG_NAME = "config.json"
TOKENIZER_NAME = "tokenizer.model"
WEIGHTS_NAME = "model.safetensors"
LAST_WEIGHTS_NAME = "last.safetensors"
POOLING_NAME = "pooling.safetensors"
_RESUME_ONLY = frozenset((LAST_WEIGHTS_NAME, "trainer.pt"))
POOLING_DIM = 256
SCALE_SUFFIX = ".scale"
KIND = "checkpoint"
BASE_ENCODER = "lstm-base"
_PACKAGE = Path(__file__).resolve().parent
# in an installed package the shipped encoders lie inside it, in a source tree beside it
_SHIPPED = (_PACKAGE / "checkpoints", _PACKAGE.parent / "checkpoints")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model folder.

    Attributes:
        model: the language model, in evaluation mode.
        pooling: the trained part of an encoder with `pooling = "learned"`.
        manifest: what `manifest.json` says: kind, versions, training summary.
        path: the folder it came from.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    config: RunConfig
    manifest: dict[str, Any]
    path: Path
    pooling: LearnedPooling | None = None

    @property
    def name(self) -> str:
        """The folder's name: how reports call this model."""
        return self.path.resolve().name

    @classmethod
    def load(cls, path: Path | str, *, device: str = "cpu", dtype: Precision = "float32") -> "Checkpoint":
        """Reads a checkpoint by its folder or name; the weights are float32, or `dtype`, whatever they were stored as.

        Raises:
            CheckpointError: the folder is missing, damaged, or its weights do not fit its config.
        """
        folder = find_checkpoint(path)
        manifest = read_manifest(folder, kind=KIND, error=CheckpointError)
        config = read_config(folder)
        try:
            tokenizer = Tokenizer.load(folder / TOKENIZER_NAME)
        except TokenizerError as error:
            raise CheckpointError(str(error)) from error
        model = build_model(config.model, vocab_size=tokenizer.vocab_size)
        load_weights(model, folder / WEIGHTS_NAME)
        pooling = None
        if config.encoder.pooling == "learned":
            pooling = build_pooling(model)
            load_weights(pooling, folder / POOLING_NAME)
            pooling = pooling.to(device).eval()
        return cls(in_precision(model.to(device).eval(), dtype), tokenizer, config, manifest, folder, pooling)


def build_pooling(model: LanguageModel) -> LearnedPooling:
    """A learned pooling that fits a model, not trained yet."""
    return LearnedPooling(vocab_size=model.vocab_size, hidden_dim=model.hidden_dim, dim=POOLING_DIM)


def read_config(folder: Path) -> RunConfig:
    """Reads `config.json` of a checkpoint.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / CONFIG_NAME
    with storage_errors(path):
        try:
            return parse_config(json.loads(path.read_text(encoding="utf-8")), where=str(path))
        except (ValueError, ConfigError) as error:
            raise CheckpointError(f"{path}: damaged configuration ({error}); train again or restore it") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Fills `model` from a safetensors file.

    Raises:
        CheckpointError: the file is damaged or its tensors do not fit the model.
    """
    with storage_errors(path):
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged weights ({error}); train again or restore the file") from error
    expected = _state(model)
    for name in [name for name in tensors if name.endswith(SCALE_SUFFIX)]:
        matrix = name.removesuffix(SCALE_SUFFIX)
        if matrix in tensors and tensors[matrix].dim() == 2 and tensors[name].shape == tensors[matrix].shape[:1]:
            tensors[matrix] = from_int8(tensors[matrix], tensors.pop(name))
    if any(tensor.dtype == torch.int8 for tensor in tensors.values()):
        raise CheckpointError(f"{path}: damaged weights (a scale does not fit); train again or restore the file")
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    wrong = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    if missing or unknown or wrong:
        name = sorted((*wrong, *missing, *unknown))[0]
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        needed = tuple(expected[name].shape) if name in expected else "nothing"
        raise CheckpointError(
            f"{path}: the weights do not fit {CONFIG_NAME} ('{name}': found {found}, needed {needed}); "
            "they come from different runs, so restore the folder or train again"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])


def save_weights(model: nn.Module, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes the model's weights as safetensors, atomically; a tied weight is stored once.

    Stored as int8, each matrix has its scales beside it and everything else is float16.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in _state(model).items():
        if dtype == torch.int8 and tensor.dim() == 2:
            tensors[name], tensors[name + SCALE_SUFFIX] = to_int8(tensor)
        else:
            tensors[name] = tensor.to(torch.float16 if dtype == torch.int8 else dtype).contiguous()
    with atomic_file(path, "wb") as stream:
        stream.write(save(tensors))


def save_checkpoint(
    folder: Path,
    *,
    model: LanguageModel,
    tokenizer: Tokenizer,
    config: RunConfig,
    pooling: LearnedPooling | None = None,
    summary: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes config, tokenizer, weights and, last, the manifest; `summary` goes into the manifest."""
    write_json(folder / CONFIG_NAME, config.model_dump(mode="json"))
    tokenizer.save(folder / TOKENIZER_NAME)
    save_weights(model, folder / WEIGHTS_NAME, dtype=dtype)
    if pooling is not None:
        save_weights(pooling, folder / POOLING_NAME, dtype=dtype)
    write_checkpoint_manifest(folder, model=model, tokenizer=tokenizer, pooling=pooling, summary=summary or {})


def write_checkpoint_manifest(
    folder: Path,
    *,
    model: LanguageModel,
    tokenizer: Tokenizer,
    pooling: LearnedPooling | None = None,
    summary: dict[str, Any],
) -> None:
    """Writes the manifest of a folder whose other files are in place."""
    parameters = model.parameter_counts()
    if pooling is not None:
        parameters["pooling"] = sum(part.numel() for part in pooling.parameters())
    content = {
        "weights_sha256": sha256_file(folder / WEIGHTS_NAME),
        "tokenizer_sha256": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "dim": pooling.dim if pooling is not None else model.hidden_dim,
        "parameters": parameters | {"total": sum(parameters.values())},
        **summary,
    }
    write_manifest(folder, kind=KIND, content=content)


def weights_fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 over weights and tokenizer as they are on disk now, whatever the manifest says."""
    parts = [sha256_file(checkpoint.path / WEIGHTS_NAME), checkpoint.tokenizer.fingerprint]
    if checkpoint.pooling is not None:
        parts.append(sha256_file(checkpoint.path / POOLING_NAME))
    return sha256_bytes(*(part.encode() for part in parts))


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """What the weights of a checkpoint are stored as: a copy stored alike has the same bytes and fingerprint."""
    path = checkpoint.path / WEIGHTS_NAME
    if not path.is_file():
        return torch.float32
    with storage_errors(path), safe_open(path, "pt") as tensors:
        names = list(tensors.keys())
        if any(name.endswith(SCALE_SUFFIX) for name in names):
            return torch.int8
        return tensors.get_tensor(names[0]).dtype if names else torch.float32


def is_checkpoint(path: Path) -> bool:
    """True for a complete checkpoint folder."""
    return (path / MANIFEST_NAME).is_file() and (path / WEIGHTS_NAME).is_file()


def check_output(path: Path, *, resume: bool = False, resumable: bool = True) -> None:
    """Raises CheckpointError where a new folder would overwrite another, or a resumed run has none to go on from."""
    if resume and not is_checkpoint(path):
        raise CheckpointError(f"{path}: nothing to resume; run without --resume")
    if not resume and (path / MANIFEST_NAME).exists():
        what, way = ("a checkpoint", "add --resume to go on, or ") if is_checkpoint(path) else ("something else", "")
        raise CheckpointError(f"{path}: holds {what} already; {way if resumable else ''}choose another --output")


def check_remote_output(location: Location, *, resume: bool = False, resumable: bool = True) -> None:
    """As `check_output` for a URI, before anything is fetched. A run that was never sent may wait on this machine."""
    if isinstance(location, RemotePath) and not resume and (location / MANIFEST_NAME).is_file():
        way = "add --resume to go on, or " if resumable else ""
        raise CheckpointError(f"{location}: holds something already; {way}choose another --output")


def find_checkpoint(name: Path | str, *, folder: Path = Path("checkpoints")) -> Path:
    """The folder meant by a path, by the name of a folder in `checkpoints/`, or of an encoder that comes with `lmr`.

    Of a URI it is a copy on this machine, brought up to date.

    Raises:
        CheckpointError: there is none; the message lists what there is.
        StorageError: there is no checkpoint at a URI, or it cannot be fetched.
    """
    if is_uri(name):
        return local_folder(str(name), leave_out=_RESUME_ONLY)
    homes = (folder, *_SHIPPED)
    for home in homes:
        found = find_folder(str(name), home)
        if found is not None:
            return found
    known = sorted({path.parent.name for home in homes for path in home.glob(f"*/{MANIFEST_NAME}")})
    hint = f"found: {', '.join(known)}" if known else "train one with `lmr train`"
    raise CheckpointError(f"{name}: no such checkpoint folder; {hint}")


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name; of tensors that share memory only the first."""
    return {name: parameter.data for name, parameter in model.named_parameters()}
