"""The LSTM language model: embedding → LSTM → linear head (Zaremba et al., 2014, arXiv:1409.2329).

Shapes: B batch, T tokens, D hidden.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lm_retrieval.config import LstmConfig
from lm_retrieval.models.base import LanguageModel, ModelOutput, State


class LstmModel(LanguageModel):
    """Reads left to right and carries (h, c), each (num_layers, B, D); there is no context window."""

    recurrent: ClassVar[bool] = True
    state_batch_dim: ClassVar[int] = 1

    def __init__(self, config: LstmConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.hidden_dim = config.hidden_dim
        self.embedding = nn.Embedding(vocab_size, config.embedding_dim)
        self.lstm = nn.LSTM(
            config.embedding_dim,
            config.hidden_dim,
            num_layers=config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            batch_first=True,
        )
        self.dropout = nn.Dropout(config.dropout)
        narrowed = config.tie_weights and config.embedding_dim != config.hidden_dim
        self.narrow = nn.Linear(config.hidden_dim, config.embedding_dim, bias=False) if narrowed else nn.Identity()
        self.output = nn.Linear(config.embedding_dim if narrowed else config.hidden_dim, vocab_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        if config.tie_weights:
            self.output.weight = self.embedding.weight

    @property
    def head(self) -> nn.Linear:
        """Head inputs → logits."""
        return self.output

    def head_inputs(self, hidden: Tensor) -> Tensor:
        """Narrowed where a tied embedding is narrower than the LSTM."""
        return torch.as_tensor(self.narrow(hidden))

    def forward(self, token_ids: Tensor, state: State | None = None) -> ModelOutput:
        """Runs over (B, T) ids from the zero state or from `state`."""
        embedded = self.embedding(token_ids)  # (B, T, D)
        if state is not None:
            # under autocast the state may come back in another dtype than the weights have
            state = tuple(part.to(embedded.dtype) for part in state)
        hidden, (h, c) = self.lstm(self.dropout(embedded), None if state is None else (state[0], state[1]))
        hidden = self.dropout(hidden)  # (B, T, D)
        return ModelOutput(hidden, embedded, (torch.as_tensor(h), torch.as_tensor(c)))
