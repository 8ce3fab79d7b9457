"""Factorised embeddings: a table narrower than the model, tied to the head or not."""

from pathlib import Path

import pytest
import torch
from conftest import make_texts
from torch import nn
from torch.nn import functional

from lm_retrieval.checkpoint import Checkpoint, save_checkpoint
from lm_retrieval.config import LstmConfig, ModelConfig, RunConfig, TransformerConfig, load_config
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError
from lm_retrieval.models import LanguageModel, build_model
from lm_retrieval.perplexity import perplexity
from lm_retrieval.tokenizer import Tokenizer

VOCAB = 50
BLOCKS = {"num_heads": 2, "num_layers": 2, "feedforward_dim": 24, "max_length": 32}
CONFIGS = {
    "lstm tied": LstmConfig(embedding_dim=8, hidden_dim=16, num_layers=2, tie_weights=True),
    "lstm": LstmConfig(embedding_dim=8, hidden_dim=16, num_layers=2),
    "transformer tied": TransformerConfig(embedding_dim=8, hidden_dim=16, tie_weights=True, **BLOCKS),
    "transformer": TransformerConfig(embedding_dim=8, hidden_dim=16, **BLOCKS),
    "rotary tied": TransformerConfig(
        embedding_dim=8, hidden_dim=16, tie_weights=True, norm="pre", positions="rotary", **BLOCKS
    ),
    "learned": TransformerConfig(embedding_dim=8, hidden_dim=16, norm="pre", positions="learned", **BLOCKS),
}


def make(config: ModelConfig, *, vocab_size: int = VOCAB) -> LanguageModel:
    torch.manual_seed(0)
    return build_model(config, vocab_size=vocab_size).eval()


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


def test_hidden_states_have_the_models_width_and_embeddings_their_own(config: ModelConfig) -> None:
    model = make(config)
    output = model(torch.randint(VOCAB, (3, 7)))
    assert (output.hidden.shape, output.embedded.shape, model.hidden_dim) == ((3, 7, 16), (3, 7, 8), 16)


def test_the_head_takes_narrowed_states_where_its_table_is_the_embeddings(config: ModelConfig) -> None:
    model = make(config)
    hidden = torch.randn(5, 16)
    narrowed = model.narrow.weight if isinstance(model.narrow, nn.Linear) else torch.eye(16)
    assert isinstance(model.narrow, nn.Linear) == config.tie_weights
    table = model.embedding.weight if config.tie_weights else model.head.weight
    expected = hidden @ narrowed.T @ table.T
    if model.head.bias is not None:
        model.head.bias.data.normal_()
        expected = expected + model.head.bias
    torch.testing.assert_close(model.logits(hidden), expected, rtol=1e-4, atol=1e-5)
    targets = torch.randint(VOCAB, (5,))
    entropies = functional.cross_entropy(expected, targets, reduction="none")
    torch.testing.assert_close(model.nll(hidden, targets), entropies, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.loss(hidden, targets), entropies.mean(), rtol=1e-4, atol=1e-5)


def test_the_number_of_parameters_of_each_part_is_what_the_widths_give() -> None:
    lstm = {"embedding": VOCAB * 8, "lstm": (8 + 16 + 2) * 64 + (16 + 16 + 2) * 64}
    assert make(CONFIGS["lstm tied"]).parameter_counts() == lstm | {"narrow": 16 * 8, "output": VOCAB}
    assert make(CONFIGS["lstm"]).parameter_counts() == lstm | {"output": VOCAB * 16 + VOCAB}
    counts = make(CONFIGS["transformer tied"]).parameter_counts()
    assert {name: counts[name] for name in ("embedding", "widen", "narrow")} == {
        "embedding": VOCAB * 8,
        "widen": 8 * 16 + 16,
        "narrow": 16 * 8,
    }
    assert "output" not in counts
    assert make(CONFIGS["learned"]).parameter_counts()["position_embedding"] == 32 * 16


def test_every_parameter_learns(config: ModelConfig) -> None:
    model = make(config)
    ids = torch.randint(VOCAB, (2, 9))
    model.loss(model(ids[:, :-1]).hidden.flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_lstm_equals_torch_run_by_hand() -> None:
    model = make(CONFIGS["lstm tied"])
    reference = nn.LSTM(8, 16, num_layers=2, batch_first=True)
    reference.load_state_dict(model.lstm.state_dict())
    ids = torch.randint(VOCAB, (3, 10))
    hidden, _ = reference(functional.embedding(ids, model.embedding.weight))
    torch.testing.assert_close(model(ids).hidden, hidden)


def test_the_transformer_reads_widened_embeddings() -> None:
    model = make(CONFIGS["transformer"])
    plain = make(TransformerConfig(embedding_dim=16, **BLOCKS))
    plain.blocks.load_state_dict(model.blocks.state_dict())
    # a table of the full width that holds, at the scale of 4, what the factors make at the scale of √8
    wide = (model.embedding.weight * 8**0.5) @ model.widen.weight.T + model.widen.bias
    plain.embedding.weight.data.copy_(wide / 4)
    ids = torch.randint(VOCAB, (3, 10))
    torch.testing.assert_close(model(ids).hidden, plain(ids).hidden, rtol=1e-4, atol=1e-5)


def test_pieces_with_the_state_between_them_equal_the_whole(config: ModelConfig) -> None:
    model = make(config)
    ids = torch.randint(VOCAB, (2, 12))
    first = model(ids[:, :5])
    second = model(ids[:, 5:], first.state)
    whole = model(ids).hidden
    torch.testing.assert_close(torch.cat((first.hidden, second.hidden), 1), whole, rtol=1e-4, atol=1e-5)


def test_equal_widths_need_no_factors() -> None:
    for same in (
        LstmConfig(embedding_dim=16, hidden_dim=16, tie_weights=True),
        TransformerConfig(embedding_dim=16, hidden_dim=16, tie_weights=True, **BLOCKS),
        TransformerConfig(embedding_dim=16, tie_weights=True, **BLOCKS),
    ):
        counts = make(same).parameter_counts()
        assert not {"widen", "narrow"} & set(counts)


def test_heads_must_divide_the_width_of_the_blocks() -> None:
    wide = ["model.type=transformer", "model.embedding_dim=6", "model.hidden_dim=32"]
    assert load_config(overrides=wide).model.width == 32
    with pytest.raises(ConfigError, match=r"hidden_dim must be a multiple of 2 \* num_heads"):
        load_config(overrides=[*wide[:2], "model.hidden_dim=30"])


def test_a_factorised_checkpoint_comes_back_and_encodes(
    config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make(config, vocab_size=tokenizer.vocab_size)
    save_checkpoint(tmp_path / "c", model=model, tokenizer=tokenizer, config=RunConfig(model=config))
    loaded = Checkpoint.load(tmp_path / "c")
    texts = make_texts(3, sentences=1)
    before, after = (perplexity(m, tokenizer=tokenizer, texts=texts).perplexity for m in (model, loaded.model))
    assert before == after
    encoder = Encoder(loaded)
    ids = torch.tensor([tokenizer.encode(texts[0])])
    with torch.no_grad():
        expected = functional.normalize(model(ids).hidden.mean(1), dim=1)[0]
    assert encoder.encode(texts[0]) == pytest.approx(expected.numpy(), abs=1e-5)
    assert encoder.dim == 16
    with pytest.raises(ConfigError, match="first_last"):
        Encoder(loaded, config=RunConfig().encoder.model_copy(update={"layers": "first_last"}))
