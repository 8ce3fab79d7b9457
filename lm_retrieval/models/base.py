"""One interface for every language model.

Shapes: B batch, T tokens, D hidden, V vocabulary, N tokens of a batch in a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lm_retrieval.models.cross_entropy import linear_cross_entropy, token_nll

State = tuple[Tensor, ...]
"""What a model carries from one piece of text to the next: LSTM (h, c), Transformer keys and values per layer."""


class ModelOutput(NamedTuple):
    """What a forward pass gives: no logits; `LanguageModel.logits` makes them where somebody wants them."""

    hidden: Tensor
    """(B, T, D) last layer."""
    embedded: Tensor
    """(B, T, D) input embeddings."""
    state: State


class LanguageModel(nn.Module, ABC):
    """A causal language model: token t's hidden state depends on tokens 0..t only.

    Padding goes on the right and needs no mask: it cannot reach earlier positions.
    """

    recurrent: ClassVar[bool] = False
    """True where the state has a fixed size and can be carried on for ever."""
    state_batch_dim: ClassVar[int] = 0

    vocab_size: int
    hidden_dim: int
    context_length: int | None = None
    """Longest sequence, in tokens; None is unlimited."""

    @abstractmethod
    def forward(self, token_ids: Tensor, state: State | None = None) -> ModelOutput:
        """Runs the model over (B, T) int64 ids, going on from `state`.

        Raises:
            ValueError: state and tokens together exceed `context_length`.
        """

    @property
    @abstractmethod
    def head(self) -> nn.Linear | None:
        """The layer from head inputs to logits; None where hidden states are logits already."""

    def head_inputs(self, hidden: Tensor) -> Tensor:
        """(…, D) hidden states → what the head takes: the same, or narrowed to the width of a tied embedding."""
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) hidden states → (…, V) float32 scores of the next token."""
        inputs = self.head_inputs(hidden)
        return (inputs if self.head is None else self.head(inputs)).float()

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of (N, D) hidden states against (N,) next tokens, differentiable."""
        return linear_cross_entropy(self.head_inputs(hidden), targets, head=self.head)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(N,) negative log-likelihoods in nats, float32, without a gradient."""
        with torch.no_grad():
            return token_nll(self.head_inputs(hidden), targets, head=self.head)

    def state_length(self, state: State | None) -> int:
        """Positions of the context window that `state` takes up."""
        return 0

    def select_state(self, state: State, rows: Sequence[int]) -> State:
        """The state of some rows of the batch, in the order given (rows may repeat)."""
        index = torch.tensor(rows, device=state[0].device)
        return tuple(part.index_select(self.state_batch_dim, index) for part in state)

    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters of each part; a weight shared by two parts counts once, in the first."""
        counts: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            counts[part] = counts.get(part, 0) + parameter.numel()
        return counts

    def encoding_flops(self, lengths: Sequence[int]) -> int:
        """Multiplications and additions in the matrix products that take texts of these lengths to hidden states."""
        lookups_and_head = ("embedding.", "position_embedding.", "table.", "output.", "narrow.")
        weights = sum(
            parameter.numel()
            for name, parameter in self.named_parameters()
            if parameter.dim() == 2 and not name.startswith(lookups_and_head)
        )
        return 2 * weights * sum(lengths)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


def detach_state(state: State | None) -> State | None:
    """The same state, cut from the graph: gradients stop at segment borders."""
    return None if state is None else tuple(part.detach() for part in state)
