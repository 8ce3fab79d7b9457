"""Causal language models of Hugging Face transformers behind this package's interface (extra `hf`).

Only safetensors weights are read and no code that comes with a model is run. The begin mark of a document is the
tokenizer's own; where it has none, its end mark stands for it (as in GPT-2, and in lm-evaluation-harness).

Shapes: B batch, T new tokens, D hidden, V vocabulary.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lm_retrieval.errors import CheckpointError, MissingExtraError
from lm_retrieval.models import LanguageModel, ModelOutput, State

PREFIX = "hf:"
_UNFINISHED = "\ufffd"


class HfParts(NamedTuple):
    """A model of transformers and its tokenizer, as this package uses them; `kind` is transformers' model type."""

    model: "HfModel"
    tokenizer: "HfTokenizer"
    kind: str


class HfModel(LanguageModel):
    """A causal language model of transformers. Its key/value cache is the state.

    Models whose cache is of another kind (sliding windows, recurrent layers) are read again from the start at each
    step: the state is then the (B, S) tokens so far.
    """

    def __init__(self, model: Any) -> None:
        """Wraps a loaded `AutoModelForCausalLM`."""
        super().__init__()
        self.wrapped: Any = model
        settings = model.config.get_text_config(decoder=True)
        self.vocab_size = int(settings.vocab_size)
        limit = getattr(settings, "max_position_embeddings", None)
        self.context_length = None if limit is None else int(limit)
        self._head, self._cached = _probe(model)
        self.hidden_dim = self.vocab_size if self._head is None else self._head.in_features

    @property
    def head(self) -> nn.Linear | None:
        """The output layer; None where the model does more than one product after its last hidden state."""
        return self._head

    def state_length(self, state: State | None) -> int:
        """Positions that have been read."""
        if not state:
            return 0
        return state[0].shape[2] if self._cached else state[0].shape[1]

    def forward(self, token_ids: Tensor, state: State | None = None) -> ModelOutput:
        """Runs over (B, T) ids after what `state` has read.

        Raises:
            ValueError: more than `context_length` positions.
        """
        length = self.state_length(state) + token_ids.shape[1]
        if self.context_length is not None and length > self.context_length:
            raise ValueError(f"{length} tokens exceed the context window of {self.context_length}")
        embedded = self.wrapped.get_input_embeddings()(token_ids)  # (B, T, D)
        inner = self.wrapped if self._head is None else self.wrapped.base_model
        if self._cached:
            output = inner(input_ids=token_ids, past_key_values=_cache(state), use_cache=True)
            new_state = tuple(part for layer in output.past_key_values.layers for part in (layer.keys, layer.values))
            return ModelOutput(self._hidden(output), embedded, new_state)
        read = token_ids if not state else torch.cat((state[0], token_ids), dim=1)
        output = inner(input_ids=read, use_cache=False)
        return ModelOutput(self._hidden(output)[:, -token_ids.shape[1] :], embedded, (read,))

    def _hidden(self, output: Any) -> Tensor:
        return torch.as_tensor(output.logits if self._head is None else output.last_hidden_state)

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part, a weight shared by two parts counted once, in the first."""
        counts: dict[str, int] = {}
        for name, parameter in self.wrapped.named_parameters():
            part = name.removeprefix(f"{self.wrapped.base_model_prefix}.").partition(".")[0]
            counts[part] = counts.get(part, 0) + parameter.numel()
        return counts


class HfTokenizer:
    """A tokenizer of transformers; it meets `TextTokenizer` and may be used from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        """Wraps a loaded `AutoTokenizer`.

        Raises:
            CheckpointError: it has neither a begin mark nor an end mark.
        """
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if begin is None:
            raise CheckpointError("the tokenizer has neither a begin mark nor an end mark; choose another model")
        self.vocab_size = len(tokenizer)
        self.bos_id = int(begin)
        self.eos_id = -1 if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without begin and end marks."""
        with self._lock:
            return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False)) if text else []

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some ids; begin and end marks vanish."""
        with self._lock:
            options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
            return str(self._tokenizer.decode(list(token_ids), **options))

    def token_text(self, token_id: int) -> str:
        """One token as text; part of a character is shown by the tokenizer's own name for it."""
        with self._lock:
            text = str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        return f"bytes:{self.mark_text(token_id)}" if _UNFINISHED in text else text

    def mark_text(self, token_id: int) -> str:
        """The name of a begin or end mark, such as `<|endoftext|>`."""
        with self._lock:
            return str(self._tokenizer.convert_ids_to_tokens(token_id))


def check_extra() -> None:
    """Raises MissingExtraError where transformers is not installed."""
    import importlib.util

    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("models of Hugging Face", extra="hf")


def load_hugging_face(name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> HfParts:
    """Loads a causal language model from a local folder, or by its name from the hub or the hub's local cache.

    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: there is no such model, it cannot be reached, or it is not a causal language model.
    """
    check_extra()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise CheckpointError(_explain(name, error)) from error
    try:
        return HfParts(HfModel(model.to(device).eval()).eval(), HfTokenizer(tokenizer), str(model.config.model_type))
    except CheckpointError as error:
        raise CheckpointError(f"{PREFIX}{name}: {error}") from error


def _explain(name: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if Path(name).is_dir():
        return f"{PREFIX}{name}: not a causal language model that transformers can read ({reason})"
    return (
        f"{PREFIX}{name}: no such folder, and the hub cannot provide it ({reason}); "
        "give the folder of a downloaded model"
    )


def _cache(state: State | None) -> Any:
    from transformers import DynamicCache

    if not state:
        return DynamicCache()
    return DynamicCache(list(zip(state[::2], state[1::2], strict=True)))


@torch.inference_mode()
def _probe(model: Any) -> tuple[nn.Linear | None, bool]:
    """The output layer, if logits are its product with the last hidden state, and whether the cache is plain."""
    from transformers.cache_utils import DynamicLayer

    token_ids = torch.tensor([[0, 1, 2]], device=model.device)
    whole = model(input_ids=token_ids, past_key_values=None, use_cache=True)
    layers = getattr(getattr(whole, "past_key_values", None), "layers", [])
    plain = bool(layers) and all(type(layer) is DynamicLayer and layer.is_initialized for layer in layers)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None, plain
    hidden = getattr(model.base_model(input_ids=token_ids), "last_hidden_state", None)
    same = hidden is not None and torch.allclose(head(hidden).float(), whole.logits.float(), rtol=1e-3, atol=1e-3)
    return (head if same else None), plain
