"""Language models: what they compute, checked against torch's own layers and against figures worked out by hand."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from lm_retrieval.config import BigramConfig, GptConfig, LstmConfig, TransformerConfig, load_config
from lm_retrieval.models import LanguageModel, build_model, cross_entropy, detach_state
from lm_retrieval.models.cross_entropy import linear_cross_entropy, token_nll
from lm_retrieval.models.transformer import _rotate, _sinusoids

VOCAB = 61
SMALL = {"embedding_dim": 32, "num_layers": 2, "num_heads": 4, "feedforward_dim": 48, "max_length": 24}
CONFIGS = {
    "lstm": LstmConfig(embedding_dim=24, hidden_dim=32, num_layers=2),
    "post-sinusoidal": TransformerConfig(**SMALL),
    "post-learned": TransformerConfig(**SMALL, positions="learned"),
    "post-rotary": TransformerConfig(**SMALL, positions="rotary"),
    "pre-sinusoidal": TransformerConfig(**SMALL, norm="pre"),
    "pre-rotary": TransformerConfig(**SMALL, norm="pre", positions="rotary"),
    "gpt": GptConfig(**SMALL),
    "bigram": BigramConfig(),
}


def make(name: str, seed: int = 0) -> LanguageModel:
    """A model in evaluation mode whose weights are large enough that everything matters."""
    torch.manual_seed(seed)
    model = build_model(CONFIGS[name], vocab_size=VOCAB).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CONFIGS)
def model(request) -> LanguageModel:
    return make(request.param)


# ---------------------------------------------------------------- parameters


def test_the_lstm_has_the_published_number_of_parameters_at_vocabulary_2000():
    counts = build_model(LstmConfig(), vocab_size=2000).parameter_counts()
    assert counts == {"embedding": 512_000, "lstm": 1_052_672, "output": 514_000}


def test_gpt_has_the_number_of_parameters_that_the_formula_gives():
    vocab, dim, layers, inner, window = 500, 256, 6, 1024, 128
    attention = 3 * dim * dim + 3 * dim + dim * dim + dim
    feedforward = dim * inner + inner + inner * dim + dim
    counts = build_model(GptConfig(), vocab_size=vocab).parameter_counts()
    assert counts == {
        "embedding": vocab * dim,
        "position_embedding": window * dim,
        "blocks": layers * (attention + feedforward + 2 * 2 * dim),
        "final_norm": 2 * dim,
        "output": dim * vocab + vocab,
    }


def test_the_gpt_preset_has_the_number_of_parameters_that_it_names():
    config = load_config(Path(__file__).parents[1] / "configs" / "gpt.toml").model
    assert sum(build_model(config, vocab_size=10_000).parameter_counts().values()) == 9_901_840


def test_a_post_norm_transformer_with_sinusoids_has_neither_position_weights_nor_a_final_norm():
    counts = build_model(CONFIGS["post-sinusoidal"], vocab_size=VOCAB).parameter_counts()
    dim, inner = 32, 48
    block = (4 * dim * dim + 4 * dim) + (2 * dim * inner + inner + dim) + 4 * dim
    assert counts == {"embedding": VOCAB * dim, "blocks": 2 * block, "output": VOCAB * dim + VOCAB}


def test_the_bigram_model_has_one_score_for_each_pair():
    assert build_model(BigramConfig(), vocab_size=VOCAB).parameter_counts() == {"table": VOCAB * VOCAB}


@pytest.mark.parametrize(
    "config",
    [
        LstmConfig(embedding_dim=32, hidden_dim=32, tie_weights=True),
        TransformerConfig(**SMALL, tie_weights=True),
        GptConfig(**SMALL, tie_weights=True),
    ],
    ids=lambda config: config.type,
)
def test_tied_weights_share_memory_and_count_once(config):
    model = build_model(config, vocab_size=VOCAB)
    assert model.head.weight.data_ptr() == model.embedding.weight.data_ptr()
    counts = model.parameter_counts()
    assert counts["embedding"] == VOCAB * 32
    assert counts.get("output", 0) == (VOCAB if config.type == "lstm" else 0)  # at most the bias
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())


def test_a_tied_weight_gets_the_gradients_of_both_its_uses():
    config = TransformerConfig(**SMALL, tie_weights=True, dropout=0.0)
    torch.manual_seed(0)
    model = build_model(config, vocab_size=VOCAB)
    ids = tokens(3, 9)
    model.loss(model(ids[:, :-1]).hidden.flatten(0, 1), ids[:, 1:].flatten()).backward()
    found = model.embedding.weight.grad.clone()
    model.zero_grad()
    hidden = model(ids[:, :-1]).hidden.flatten(0, 1)
    functional.cross_entropy(hidden @ model.embedding.weight.T, ids[:, 1:].flatten()).backward()
    torch.testing.assert_close(found, model.embedding.weight.grad, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------- causality and state


@pytest.mark.parametrize("place", [1, 6, 11])
def test_a_token_changes_its_own_hidden_state_and_none_before_it(model, place):
    ids = tokens(2, 12)
    changed = ids.clone()
    changed[:, place] = (changed[:, place] + 1) % VOCAB
    before, after = model(ids).hidden, model(changed).hidden
    torch.testing.assert_close(before[:, :place], after[:, :place], rtol=0, atol=1e-6)
    assert (before[:, place] - after[:, place]).abs().amax(-1).min() > 1e-3


def test_a_token_reaches_every_later_hidden_state_except_in_the_bigram_model(model):
    ids = tokens(2, 12)
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCAB
    difference = (model(ids).hidden - model(changed).hidden).abs().amax(-1)[:, 1:]
    if model.head is None:
        assert difference.max() == 0
    else:
        assert difference.min() > 1e-6


def test_two_pieces_with_the_state_between_them_equal_the_whole(model):
    ids = tokens(3, 20)
    whole = model(ids)
    for cut in (1, 7, 19):
        first = model(ids[:, :cut])
        second = model(ids[:, cut:], first.state)
        joined = torch.cat([first.hidden, second.hidden], 1)
        torch.testing.assert_close(joined, whole.hidden, rtol=1e-5, atol=1e-5)
        for part, expected in zip(second.state, whole.state, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)


def test_token_by_token_equals_the_whole(model):
    ids = tokens(2, 20)
    state, steps = None, []
    for place in range(20):
        output = model(ids[:, place : place + 1], state)
        state = output.state
        steps.append(output.hidden)
    torch.testing.assert_close(torch.cat(steps, 1), model(ids).hidden, rtol=1e-5, atol=1e-5)


def test_padding_on_the_right_does_not_change_earlier_positions(model):
    short = tokens(1, 8)
    padded = torch.cat([short, torch.zeros(1, 10, dtype=torch.int64)], 1)
    batch = torch.cat([padded, tokens(1, 18, seed=5)])
    torch.testing.assert_close(model(batch).hidden[:1, :8], model(short).hidden, rtol=1e-5, atol=1e-5)


def test_selected_rows_of_a_state_go_on_like_those_rows(model):
    first, second = tokens(4, 6), tokens(4, 5, seed=2)
    state = model(first).state
    rows = [2, 0, 2]
    found = model(second[rows], model.select_state(state, rows)).hidden
    expected = model(torch.cat([first, second], 1)).hidden[rows, 6:]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "bigram"])
def test_select_state_picks_rows_in_the_order_given(name):
    model = make(name)
    state = model(tokens(3, 5)).state
    picked = model.select_state(state, [1, 0])
    for part, chosen in zip(state, picked, strict=True):
        rows = part.unbind(model.state_batch_dim)
        torch.testing.assert_close(chosen, torch.stack([rows[1], rows[0]], model.state_batch_dim), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("bigram", "lstm")])
def test_more_positions_than_the_context_window_are_refused_with_and_without_a_cache(name):
    model = make(name)
    assert model(tokens(1, 24)).hidden.shape == (1, 24, 32)  # exactly the window
    with pytest.raises(ValueError, match="25 tokens exceed the context window of 24"):
        model(tokens(1, 25))
    state = model(tokens(1, 20)).state
    assert model.state_length(state) == 20
    assert model.state_length(None) == 0
    with pytest.raises(ValueError, match="25 tokens exceed the context window of 24"):
        model(tokens(1, 5), state)


@pytest.mark.parametrize("name", ["lstm", "bigram"])
def test_recurrent_models_have_no_context_window(name):
    model = make(name)
    assert model.recurrent
    assert model.context_length is None
    assert model.state_length(model(tokens(1, 300)).state) == 0


def test_a_detached_state_has_the_same_values_and_no_gradient():
    model = make("lstm")
    state = model(tokens(2, 4)).state
    detached = detach_state(state)
    assert all(part.requires_grad for part in state)
    assert not any(part.requires_grad for part in detached)
    for part, expected in zip(detached, state, strict=True):
        assert torch.equal(part, expected)
    assert detach_state(None) is None


# ---------------------------------------------------------------- against torch's own layers


def test_the_lstm_equals_torch_run_by_hand_with_the_same_weights():
    model = make("lstm")
    reference = nn.LSTM(24, 32, num_layers=2, batch_first=True)
    reference.load_state_dict(model.lstm.state_dict())
    ids = tokens(3, 10)
    start = (torch.randn(2, 3, 32), torch.randn(2, 3, 32))
    embedded = functional.embedding(ids, model.embedding.weight)
    hidden, (h, c) = reference(embedded, start)
    output = model(ids, start)
    torch.testing.assert_close(output.hidden, hidden, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.state, (h, c), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.embedded, embedded, rtol=0, atol=0)
    expected = hidden @ model.output.weight.T + model.output.bias
    torch.testing.assert_close(model.logits(output.hidden), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_blocks_equal_torch_encoder_layers_with_the_same_weights(norm, activation):
    torch.manual_seed(0)
    config = TransformerConfig(**SMALL, norm=norm, activation=activation)
    model = build_model(config, vocab_size=VOCAB).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = tokens(2, 11)
    hidden = model.embedding(ids) * math.sqrt(32) + _sinusoids(11, 32)
    mask = nn.Transformer.generate_square_subsequent_mask(11)
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(32, 4, 48, 0.0, activation, batch_first=True, norm_first=norm == "pre")
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": block.attention_input.weight,
                "self_attn.in_proj_bias": block.attention_input.bias,
                "self_attn.out_proj.weight": block.attention_output.weight,
                "self_attn.out_proj.bias": block.attention_output.bias,
                "linear1.weight": block.feedforward_input.weight,
                "linear1.bias": block.feedforward_input.bias,
                "linear2.weight": block.feedforward_output.weight,
                "linear2.bias": block.feedforward_output.bias,
                "norm1.weight": block.attention_norm.weight,
                "norm1.bias": block.attention_norm.bias,
                "norm2.weight": block.feedforward_norm.weight,
                "norm2.bias": block.feedforward_norm.bias,
            }
        )
        hidden = layer.eval()(hidden, src_mask=mask, is_causal=True)
    if norm == "pre":
        hidden = functional.layer_norm(hidden, (32,), model.final_norm.weight, model.final_norm.bias)
    torch.testing.assert_close(model(ids).hidden, hidden, rtol=1e-4, atol=1e-5)


def test_learned_positions_are_added_to_unscaled_embeddings():
    model = make("gpt")
    ids = tokens(2, 5)
    assert torch.equal(model(ids).embedded, model.embedding.weight[ids])
    with torch.no_grad():  # all tokens alike: only the position tells hidden states apart
        model.embedding.weight.copy_(model.embedding.weight[:1].expand(VOCAB, -1))
        same = model(ids).hidden
        model.position_embedding.weight.zero_()
        without = model(ids).hidden
    assert (same[:, 0] - same[:, 1]).abs().max() > 1e-2
    torch.testing.assert_close(without[:, 0], without[:, 1], rtol=0, atol=1e-5)


def test_sinusoids_have_the_wavelengths_of_the_paper():
    table = _sinusoids(50, 8)
    for position in (0, 1, 49):
        for pair in range(4):
            angle = position / 10_000 ** (2 * pair / 8)
            assert table[position, pair].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, pair + 4].item() == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("gap", [0, 1, 5])
def test_rotated_queries_and_keys_meet_in_an_inner_product_that_depends_on_their_distance_only(gap):
    torch.manual_seed(0)
    query, key = torch.randn(8), torch.randn(8)
    table = _sinusoids(40, 8)
    queries = _rotate(query.expand(1, 1, 40, 8), table)[0, 0]
    keys = _rotate(key.expand(1, 1, 40, 8), table)[0, 0]
    products = (queries[gap:] * keys[: 40 - gap]).sum(-1)
    torch.testing.assert_close(products, products[:1].expand_as(products), rtol=1e-4, atol=1e-5)
    # a complex number per pair of columns, turned by the distance, gives the same
    rates = 10_000 ** (-torch.arange(4) / 4)
    turned = torch.complex(query[:4], query[4:]) * torch.polar(torch.ones(4), gap * rates)
    expected = (turned * torch.complex(key[:4], key[4:]).conj()).real.sum()
    assert products[0].item() == pytest.approx(expected.item(), abs=1e-4)


def test_rotation_keeps_lengths_and_distances_tell_products_apart():
    torch.manual_seed(0)
    vector = torch.randn(8)
    rotated = _rotate(vector.expand(1, 1, 40, 8), _sinusoids(40, 8))[0, 0]
    torch.testing.assert_close(rotated.norm(dim=-1), vector.norm().expand(40), rtol=1e-5, atol=1e-6)
    assert (rotated @ rotated[0])[:10].diff().abs().min() > 1e-3


def test_dropout_acts_in_training_mode_only():
    torch.manual_seed(0)
    for config in (LstmConfig(embedding_dim=16, hidden_dim=16, dropout=0.5), TransformerConfig(**SMALL, dropout=0.5)):
        model = build_model(config, vocab_size=VOCAB)
        ids = tokens(2, 6)
        assert not torch.equal(model(ids).hidden, model(ids).hidden)
        model.eval()
        assert torch.equal(model(ids).hidden, model(ids).hidden)


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("chunk_scores", [1 << 22, VOCAB * 7, 1], ids=["one chunk", "seven rows", "row by row"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_linear_cross_entropy_and_all_its_gradients_equal_torch(monkeypatch, chunk_scores, bias):
    monkeypatch.setattr(cross_entropy, "_CHUNK_SCORES", chunk_scores)
    torch.manual_seed(0)
    head = nn.Linear(16, VOCAB, bias=bias)
    hidden = torch.randn(40, 16, requires_grad=True)
    targets = tokens(40)
    leaves = [hidden, *head.parameters()]
    loss = linear_cross_entropy(hidden, targets, head=head)
    expected = functional.cross_entropy(head(hidden), targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(3 * loss, leaves)  # a factor shows whether the incoming gradient is used
    wanted = torch.autograd.grad(3 * expected, leaves)
    for gradient, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6)


def test_linear_cross_entropy_stays_finite_for_scores_that_overflow_an_exponential():
    head = nn.Linear(4, VOCAB, bias=False)
    hidden = (1e4 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    targets = tokens(6)
    loss = linear_cross_entropy(hidden, targets, head=head)
    torch.testing.assert_close(loss, functional.cross_entropy(head(hidden), targets), rtol=1e-5, atol=1e-4)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.isfinite().all()


def test_without_a_head_hidden_states_are_the_scores():
    torch.manual_seed(0)
    scores = torch.randn(9, VOCAB, requires_grad=True)
    targets = tokens(9)
    loss = linear_cross_entropy(scores, targets, head=None)
    torch.testing.assert_close(loss, functional.cross_entropy(scores, targets))
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, (scores.softmax(1) - functional.one_hot(targets, VOCAB)) / 9)


@pytest.mark.parametrize("chunk_scores", [1 << 22, VOCAB * 5])
@pytest.mark.parametrize("with_head", [True, False])
def test_token_nll_equals_cross_entropy_token_by_token(monkeypatch, chunk_scores, with_head):
    monkeypatch.setattr(cross_entropy, "_CHUNK_SCORES", chunk_scores)
    torch.manual_seed(0)
    head = nn.Linear(16, VOCAB) if with_head else None
    hidden = torch.randn(23, 16 if with_head else VOCAB)
    targets = tokens(23)
    found = token_nll(hidden, targets, head=head)
    logits = hidden if head is None else head(hidden)
    torch.testing.assert_close(found, functional.cross_entropy(logits, targets, reduction="none"))
    assert not found.requires_grad
    assert token_nll(hidden[:0], targets[:0], head=head).tolist() == []


def test_the_loss_of_a_model_is_the_mean_of_its_token_likelihoods(model):
    ids = tokens(3, 8)
    hidden = model(ids[:, :-1]).hidden.flatten(0, 1)
    targets = ids[:, 1:].flatten()
    torch.testing.assert_close(model.loss(hidden, targets), model.nll(hidden, targets).mean(), rtol=1e-5, atol=1e-5)


def test_a_fresh_model_is_about_as_surprised_as_a_guess():
    ids = tokens(4, 20)
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        fresh = build_model(config, vocab_size=VOCAB).eval()
        loss = fresh.loss(fresh(ids[:, :-1]).hidden.flatten(0, 1), ids[:, 1:].flatten()).item()
        assert loss == pytest.approx(math.log(VOCAB), rel=0.05), name


def test_a_bigram_model_of_log_counts_has_the_conditional_entropy_of_its_text():
    # "a b a b a c": a is followed by b, b, c; b by a, a
    ids = torch.tensor([[0, 1, 0, 1, 0, 2]])
    model = build_model(BigramConfig(), vocab_size=3)
    counts = torch.zeros(3, 3)
    for left, right in zip(ids[0, :-1], ids[0, 1:], strict=True):
        counts[left, right] += 1
    with torch.no_grad():
        model.table.weight.copy_(counts.clamp(min=1e-30).log())
    entropy = -(2 * math.log(2 / 3) + math.log(1 / 3) + 2 * math.log(1)) / 5
    loss = model.loss(model(ids[:, :-1]).hidden.flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(entropy, rel=1e-6)
    assert entropy == pytest.approx(0.381909, abs=1e-6)


def test_gradient_descent_on_the_bigram_table_finds_the_same_entropy():
    ids = torch.tensor([[0, 1, 0, 1, 0, 2]])
    model = build_model(BigramConfig(), vocab_size=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=4.0)
    for _ in range(300):
        loss = model.loss(model(ids[:, :-1]).hidden.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(0.381909, abs=2e-3)
