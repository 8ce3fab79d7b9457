"""The bigram model: a table of next-token scores, the baseline every model must beat.

Shapes: B batch, T tokens, V vocabulary.
"""

from typing import ClassVar

from torch import Tensor, nn

from lm_retrieval.models.base import LanguageModel, ModelOutput, State


class BigramModel(LanguageModel):
    """Looks at one token only; its hidden state is the row of logits itself."""

    recurrent: ClassVar[bool] = True

    def __init__(self, *, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = self.hidden_dim = vocab_size
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)

    @property
    def head(self) -> None:
        """Hidden states are logits already."""
        return None

    def forward(self, token_ids: Tensor, state: State | None = None) -> ModelOutput:
        """Looks up (B, T) ids; there is nothing to carry, so the state stays empty."""
        scores = self.table(token_ids)  # (B, T, V)
        return ModelOutput(scores, scores, ())

    def select_state(self, state: State, rows: object) -> State:
        """The empty state is the same for every row."""
        return state
