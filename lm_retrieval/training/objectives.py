"""What a training step minimises, behind one interface for the one trainer.

Shapes: B rows, T tokens, D hidden.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lm_retrieval.checkpoint import WEIGHTS_NAME, save_weights
from lm_retrieval.models import LanguageModel, State, detach_state
from lm_retrieval.training.batches import SegmentBatches, TokenStream


@dataclass(frozen=True)
class Evaluation:
    """Held-out results: `loss` decides which weights are best, `metrics` are written to `metrics.jsonl`."""

    loss: float
    metrics: dict[str, float] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """A model with a loss. The trainer calls it through `forward` only, so that DDP and compile can wrap it."""

    model: LanguageModel

    @abstractmethod
    def forward(self, batch: Any, state: State | None) -> tuple[Tensor, State | None]:
        """The mean loss of a batch, and the state to carry on with."""

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """Scores held-out data, without gradients or dropout."""

    def learning_rate_ratio(self, name: str) -> float:
        """How many times the learning rate a parameter gets."""
        return 1.0

    def save_best(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Writes the weights as those of the checkpoint."""
        save_weights(self.model, folder / WEIGHTS_NAME, dtype=dtype)


class NextTokenObjective(Objective):
    """Cross-entropy of the next token."""

    def __init__(
        self, model: LanguageModel, *, validation: TokenStream, sequence_length: int, max_tokens: int, carry_state: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.carry_state = carry_state and model.recurrent
        self.validation = validation
        rows = max(1, min(16, len(validation.token_ids) // (4 * sequence_length)))
        length = min(sequence_length, max(1, (len(validation.token_ids) - 2) // 2))
        self.batches = SegmentBatches(validation, batch_size=rows, sequence_length=length, seed=0)
        self.steps = max(1, min(self.batches.steps_per_epoch, max_tokens // self.batches.tokens_per_step))

    def forward(self, batch: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """(B, T + 1) ids → mean nats per token."""
        output = self.model(batch[:, :-1], state)
        loss = self.model.loss(output.hidden.flatten(0, 1), batch[:, 1:].flatten())
        return loss, detach_state(output.state) if self.carry_state else None

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Mean loss over the held-out stream (at most `eval_max_tokens`), with perplexity and bits per byte."""
        training = self.model.training
        self.model.eval()
        total, state = 0.0, None
        for step in range(self.steps):
            batch = self.batches.batch(0, step)[0].to(self.model.device)
            output = self.model(batch[:, :-1], state)
            state = output.state if self.carry_state else None
            total += float(self.model.nll(output.hidden.flatten(0, 1), batch[:, 1:].flatten()).double().sum())
        self.model.train(training)
        loss = total / (self.steps * self.batches.tokens_per_step)
        tokens_per_byte = len(self.validation.token_ids) / max(1, self.validation.text_bytes)
        metrics = {
            "validation_perplexity": math.exp(min(loss, 700.0)),
            "validation_bits_per_byte": loss * tokens_per_byte / math.log(2),
        }
        return Evaluation(loss, metrics)
