"""The causal Transformer language model, with a key/value cache.

Post-norm with sinusoidal positions is Vaswani et al., 2017 (arXiv:1706.03762); pre-norm with learned positions is
GPT-2's arrangement; rotary positions are Su et al., 2021 (arXiv:2104.09864).

Shapes: B batch, T new tokens, S cached and new tokens, D hidden, H heads, E = D / H.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lm_retrieval.config import TransformerConfig
from lm_retrieval.models.base import LanguageModel, ModelOutput, State


class TransformerModel(LanguageModel):
    """Blocks of causal self-attention; the state holds keys and values, (B, H, S, E) each, of every layer."""

    def __init__(self, config: TransformerConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.hidden_dim = width = config.width
        self.context_length = config.max_length
        self.positions = config.positions
        self.sinusoids: Tensor
        self.embedding = nn.Embedding(vocab_size, config.embedding_dim)
        # GPT-2 adds learned positions to unscaled embeddings; the original scales by √d before adding sinusoids
        self.scale = 1.0 if config.positions == "learned" else math.sqrt(config.embedding_dim)
        factorised = config.embedding_dim != width
        self.widen = nn.Linear(config.embedding_dim, width) if factorised else nn.Identity()
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.max_length, width)
        else:
            columns = width if config.positions == "sinusoidal" else width // config.num_heads
            self.register_buffer("sinusoids", _sinusoids(config.max_length, columns), persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(width) if config.norm == "pre" else nn.Identity()
        narrowed = factorised and config.tie_weights
        self.narrow = nn.Linear(width, config.embedding_dim, bias=False) if narrowed else nn.Identity()
        self.output = nn.Linear(config.embedding_dim if narrowed else width, vocab_size, bias=not config.tie_weights)
        self._initialise(config)

    def _initialise(self, config: TransformerConfig) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
            elif config.norm == "pre":
                nn.init.normal_(parameter, std=0.02)
            elif "embedding" not in name:
                nn.init.xavier_uniform_(parameter)
        if config.norm == "pre":
            for block in self.blocks:
                assert isinstance(block, _Block)
                for layer in (block.attention_output, block.feedforward_output):
                    # residual branches add up: GPT-2 scales them by the depth
                    nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * config.num_layers))
        else:
            nn.init.normal_(self.embedding.weight, std=config.embedding_dim**-0.5)
            nn.init.normal_(self.output.weight, std=0.02)
        if config.tie_weights:
            self.output.weight = self.embedding.weight

    @property
    def head(self) -> nn.Linear:
        """Head inputs → logits."""
        return self.output

    def head_inputs(self, hidden: Tensor) -> Tensor:
        """Narrowed where a tied embedding is narrower than the blocks."""
        return torch.as_tensor(self.narrow(hidden))

    def encoding_flops(self, lengths: Sequence[int]) -> int:
        """Attention's two products are added; of each text's square of positions, half are in the past."""
        pairs = sum(length * (length + 1) // 2 for length in lengths)
        return super().encoding_flops(lengths) + 4 * pairs * self.hidden_dim * len(self.blocks)

    def state_length(self, state: State | None) -> int:
        """Cached positions."""
        return state[0].shape[2] if state else 0

    def forward(self, token_ids: Tensor, state: State | None = None) -> ModelOutput:
        """Runs over (B, T) ids after the cached positions.

        Raises:
            ValueError: more than `context_length` positions.
        """
        start, length = self.state_length(state), token_ids.shape[1]
        assert self.context_length is not None
        if start + length > self.context_length:
            raise ValueError(f"{start + length} tokens exceed the context window of {self.context_length}")
        embedded = self.embedding(token_ids) * self.scale  # (B, T, D)
        hidden, rotation = self.widen(embedded), None
        if self.positions == "learned":
            hidden = hidden + self.position_embedding.weight[start : start + length]
        elif self.positions == "sinusoidal":
            hidden = hidden + self.sinusoids[start : start + length].to(hidden.dtype)
        else:
            rotation = self.sinusoids[start : start + length]
        hidden = self.dropout(hidden)
        mask = _causal_mask(start, length, hidden.device)
        cache: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            past = None if not state else (state[2 * layer], state[2 * layer + 1])
            hidden, keys, values = block(hidden, past, mask, rotation)
            cache += (keys, values)
        return ModelOutput(self.final_norm(hidden), embedded, tuple(cache))


class _Block(nn.Module):
    """Self-attention and feed-forward, each in a residual branch with its norm before or after."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.width
        self.num_heads = config.num_heads
        self.pre_norm = config.norm == "pre"
        self.dropout_rate = config.dropout
        self.attention_input = nn.Linear(dim, 3 * dim)
        self.attention_output = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.feedforward_input = nn.Linear(dim, config.feedforward_dim)
        self.feedforward_output = nn.Linear(config.feedforward_dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.activation = nn.GELU() if config.activation == "gelu" else nn.ReLU()
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor | None, rotation: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        source = self.attention_norm(hidden) if self.pre_norm else hidden
        attended, keys, values = self._attend(source, past, mask, rotation)
        hidden = hidden + self.dropout(attended)
        if not self.pre_norm:
            hidden = self.attention_norm(hidden)
        source = self.feedforward_norm(hidden) if self.pre_norm else hidden
        hidden = hidden + self.dropout(self.feedforward_output(self.activation(self.feedforward_input(source))))
        return (hidden if self.pre_norm else self.feedforward_norm(hidden)), keys, values

    def _attend(
        self, source: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor | None, rotation: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, dim = source.shape
        parts = self.attention_input(source).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, E) each
        if rotation is not None:
            queries, keys = _rotate(queries, rotation), _rotate(keys, rotation)
        if past is not None:
            keys = torch.cat((past[0].to(keys.dtype), keys), dim=2)  # (B, H, S, E)
            values = torch.cat((past[1].to(values.dtype), values), dim=2)
        mixed = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout_rate if self.training else 0.0,
            is_causal=past is None and length > 1,
        )
        return self.attention_output(mixed.transpose(1, 2).reshape(batch, length, dim)), keys, values


def _causal_mask(start: int, length: int, device: torch.device) -> Tensor | None:
    """(T, S) mask for several new tokens after cached ones; elsewhere attention needs no mask tensor."""
    if start == 0 or length == 1:
        return None
    return torch.ones(length, start + length, dtype=torch.bool, device=device).tril(start)


def _sinusoids(length: int, width: int) -> Tensor:
    """(length, width) table: sines in the first half of the columns, cosines in the second."""
    rates = torch.exp(torch.arange(width // 2) * (-math.log(10_000.0) / (width // 2)))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def _rotate(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Turns (B, H, T, E) queries or keys by the angles of their positions, (T, E) sines and cosines."""
    sin, cos = rotation.to(vectors.dtype).chunk(2, dim=-1)
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
