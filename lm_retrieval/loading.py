"""Opening any language model by what a user calls it: a checkpoint of ours, or `hf:PATH_OR_NAME`."""

from dataclasses import dataclass
from pathlib import Path

from lm_retrieval.checkpoint import WEIGHTS_NAME, Checkpoint, find_checkpoint
from lm_retrieval.hugging_face import PREFIX, check_extra, load_hugging_face
from lm_retrieval.models import LanguageModel
from lm_retrieval.models.precision import in_precision
from lm_retrieval.runtime import Precision, configure_torch, resolve_device
from lm_retrieval.tokenizer import TextTokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A language model ready to read and write.

    Attributes:
        name: how reports call it.
        kind: its architecture: `lstm`, `transformer`, `gpt`, …, or transformers' model type, such as `gpt2`.
        folder: where it was read from; None for a model of the hub.
        weights_bytes: size of its weights on disk; in memory for a model of the hub.
    """

    name: str
    kind: str
    model: LanguageModel
    tokenizer: TextTokenizer
    folder: Path | None
    weights_bytes: int

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, model: LanguageModel | None = None) -> "LoadedModel":
        """The language model of a checkpoint; with `model`, a copy of it in another dtype."""
        return cls(
            name=checkpoint.name,
            kind=checkpoint.config.model.type,
            model=model or checkpoint.model,
            tokenizer=checkpoint.tokenizer,
            folder=checkpoint.path,
            weights_bytes=(checkpoint.path / WEIGHTS_NAME).stat().st_size,
        )


def load_language_model(source: str | Path, *, device: str = "auto", dtype: Precision = "float32") -> LoadedModel:
    """Loads a checkpoint by folder or name, or with `hf:` a model of transformers by folder or hub name.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        MissingExtraError: `hf:` without the extra.
        ConfigError: an unknown device, or a dtype that it cannot compute in.
    """
    configure_torch()
    target = str(resolve_device(device))
    name = hub_name(source)
    if name is None:
        return LoadedModel.from_checkpoint(Checkpoint.load(find_checkpoint(source), device=target, dtype=dtype))
    parts = load_hugging_face(name, device=target)
    folder = Path(name) if Path(name).is_dir() else None
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0
    held = sum(weights.numel() * weights.element_size() for weights in parts.model.parameters())
    model = in_precision(parts.model, dtype)
    return LoadedModel(default_name(source), parts.kind, model, parts.tokenizer, folder, stored or held)


def hub_name(source: str | Path) -> str | None:
    """What follows `hf:`; None where the source is a checkpoint of ours."""
    text = str(source)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def default_name(source: str | Path) -> str:
    """The name of a model that has not been given one: the last part of its folder or hub name."""
    name = hub_name(source)
    return Path(name or source).resolve().name if name is None or Path(name).is_dir() else name.rpartition("/")[2]


def check_source(source: str | Path) -> None:
    """Raises CheckpointError or MissingExtraError where it is clear without loading that a model cannot be loaded."""
    if hub_name(source) is None:
        find_checkpoint(source)
    else:
        check_extra()
