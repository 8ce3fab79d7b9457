"""A checkpoint: model + tokenizer + configuration in one folder, without a line of executable content."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

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
from lm_retrieval.models import LanguageModel, build_model
from lm_retrieval.tokenizer import Tokenizer

CONFIG_NAME = "config.json"
TOKENIZER_NAME = "tokenizer.model"
WEIGHTS_NAME = "model.safetensors"
LAST_WEIGHTS_NAME = "last.safetensors"
KIND = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model folder.

    Attributes:
        model: the language model, in evaluation mode.
        manifest: what `manifest.json` says: kind, versions, training summary.
        path: the folder it came from.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    config: RunConfig
    manifest: dict[str, Any]
    path: Path

    @property
    def name(self) -> str:
        """The folder's name: how reports call this model."""
        return self.path.resolve().name

    @classmethod
    def load(cls, path: Path | str, *, device: str = "cpu") -> "Checkpoint":
        """Reads a checkpoint folder; the weights are float32, whatever they were stored as.

        Raises:
            CheckpointError: the folder is missing, damaged, or its weights do not fit its config.
        """
        folder = Path(path)
        manifest = read_manifest(folder, kind=KIND, error=CheckpointError)
        config = read_config(folder)
        try:
            tokenizer = Tokenizer.load(folder / TOKENIZER_NAME)
        except TokenizerError as error:
            raise CheckpointError(str(error)) from error
        model = build_model(config.model, vocab_size=tokenizer.vocab_size)
        load_weights(model, folder / WEIGHTS_NAME)
        return cls(model.to(device).eval(), tokenizer, config, manifest, folder)


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


def load_weights(model: LanguageModel, path: Path) -> None:
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


def save_weights(model: LanguageModel, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes the model's weights as safetensors, atomically; a tied weight is stored once."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in _state(model).items()}
    with atomic_file(path, "wb") as stream:
        stream.write(save(tensors))


def save_checkpoint(
    folder: Path,
    *,
    model: LanguageModel,
    tokenizer: Tokenizer,
    config: RunConfig,
    summary: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes config, tokenizer, weights and, last, the manifest; `summary` goes into the manifest."""
    write_json(folder / CONFIG_NAME, config.model_dump(mode="json"))
    tokenizer.save(folder / TOKENIZER_NAME)
    save_weights(model, folder / WEIGHTS_NAME, dtype=dtype)
    write_checkpoint_manifest(folder, model=model, tokenizer=tokenizer, summary=summary or {})


def write_checkpoint_manifest(
    folder: Path, *, model: LanguageModel, tokenizer: Tokenizer, summary: dict[str, Any]
) -> None:
    """Writes the manifest of a folder whose other files are in place."""
    parameters = model.parameter_counts()
    content = {
        "weights_sha256": sha256_file(folder / WEIGHTS_NAME),
        "tokenizer_sha256": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "dim": model.hidden_dim,
        "parameters": parameters | {"total": sum(parameters.values())},
        **summary,
    }
    write_manifest(folder, kind=KIND, content=content)


def weights_fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 over weights and tokenizer as they are on disk now, whatever the manifest says."""
    weights = sha256_file(checkpoint.path / WEIGHTS_NAME)
    return sha256_bytes(weights.encode(), checkpoint.tokenizer.fingerprint.encode())


def corpus_of(folder: Path) -> str | None:
    """The path of the corpus a checkpoint was trained on, where its manifest knows."""
    path = read_manifest(folder, kind=KIND, error=CheckpointError).get("corpus_path")
    return None if path is None else str(path)


def is_checkpoint(path: Path) -> bool:
    """True for a complete checkpoint folder."""
    return (path / MANIFEST_NAME).is_file() and (path / WEIGHTS_NAME).is_file()


def find_checkpoint(name: str, *, folder: Path = Path("checkpoints")) -> Path:
    """The folder meant by a path or by the name of a folder in `checkpoints/`.

    Raises:
        CheckpointError: there is none; the message lists what there is.
    """
    found = find_folder(name, folder)
    if found is not None:
        return found
    known = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_NAME}"))
    hint = f"found in {folder}: {', '.join(known)}" if known else "train one with `lmr train`"
    raise CheckpointError(f"{name}: no such checkpoint folder; {hint}")


def _state(model: LanguageModel) -> dict[str, Tensor]:
    """Parameters by name; of tensors that share memory only the first."""
    return {name: parameter.data for name, parameter in model.named_parameters()}
