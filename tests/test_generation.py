"""Continuing text: checked against recomputing everything for each token, brute force, and tables made by hand."""

import io
import itertools
import math
from dataclasses import replace

import pytest
import sentencepiece
import torch

from lm_retrieval.config import BigramConfig, GptConfig, LstmConfig, TokenizerConfig, TransformerConfig
from lm_retrieval.errors import ConfigError
from lm_retrieval.generation import PRESETS, GenerationConfig, filter_logits, generate, stream
from lm_retrieval.models import LanguageModel, build_model
from lm_retrieval.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat", "a dog ran over the field", "ä日", "xyz"]
PROMPTS = ["the cat", "a", "the dog sat on a", "xy"]
SMALL = {"embedding_dim": 16, "num_layers": 2, "num_heads": 2, "feedforward_dim": 32}
CONFIGS = {
    "lstm": LstmConfig(embedding_dim=16, hidden_dim=24, num_layers=2),
    "transformer": TransformerConfig(**SMALL, max_length=64),
    "rotary": TransformerConfig(**SMALL, max_length=64, norm="pre", positions="rotary"),
    "gpt": GptConfig(**SMALL, max_length=64),
    "window": TransformerConfig(**SMALL, max_length=16),
}
NEURAL = ["lstm", "transformer", "rotary", "gpt"]
GREEDY = GenerationConfig(max_new_tokens=20, do_sample=False)
SAMPLED = GenerationConfig(max_new_tokens=20, temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.2, seed=3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, TokenizerConfig(type="char", vocab_size=400))


@pytest.fixture(scope="module")
def tiny_tokenizer() -> Tokenizer:
    """Six ids: unknown, begin, end, space, a, b."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab ba a b"] * 10),
        model_writer=buffer,
        model_type="char",
        vocab_size=6,
        minloglevel=2,
    )
    return Tokenizer(buffer.getvalue())


def make(kind: str, tokenizer: Tokenizer, *, seed: int = 0, ends: bool = False) -> LanguageModel:
    """A random model sure enough of itself that no two scores nearly tie; it never ends a text unless told."""
    torch.manual_seed(seed)
    model = build_model(CONFIGS[kind], vocab_size=tokenizer.vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.7 * torch.randn_like(parameter))
        if not ends:
            model.head.bias[tokenizer.eos_id] = -1e4
    return model


def chain(tokenizer: Tokenizer, *ids: int) -> LanguageModel:
    """A bigram model in which each of `ids` is followed by the next one, practically surely."""
    model = build_model(BigramConfig(), vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        for left, right in itertools.pairwise(ids):
            model.table.weight[left, right] = 50.0
    return model.eval()


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of single characters, without the space in front of a text."""
    return tokenizer.encode(text)[1:]


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


@torch.inference_mode()
def next_scores(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    return model.logits(model(torch.tensor([ids])).hidden[0, -1])


@torch.inference_mode()
def log_probability(model: LanguageModel, start: list[int], new: tuple[int, ...]) -> float:
    """Recomputed from one forward pass over everything."""
    ids = [*start, *new]
    scores = model.logits(model(torch.tensor([ids])).hidden[0]).double().log_softmax(-1)
    return sum(scores[place - 1, ids[place]].item() for place in range(len(start), len(ids)))


# ---------------------------------------------------------------- equal to recomputing, alone and in batches


@pytest.mark.parametrize("kind", NEURAL)
def test_greedy_decoding_with_a_cache_equals_recomputing_the_whole_prefix_for_every_token(tokenizer, kind):
    model = make(kind, tokenizer)
    used: set[int] = set()
    for prompt in PROMPTS:
        ids = prompt_ids(tokenizer, prompt)
        start = len(ids)
        for _ in range(GREEDY.max_new_tokens):
            ids.append(int(next_scores(model, ids).argmax()))
        (result,) = generate(model, tokenizer=tokenizer, prompts=[prompt], config=GREEDY)
        assert list(result.token_ids) == ids[start:]
        assert tokenizer.decode(ids) == prompt + result.text
        used.update(result.token_ids)
    assert len(used) > 8  # not one token over and over


@pytest.mark.parametrize("kind", NEURAL)
def test_sampling_with_a_cache_equals_drawing_from_recomputed_filtered_scores(tokenizer, kind):
    model = make(kind, tokenizer)
    ids = prompt_ids(tokenizer, "the cat")
    start, generator = len(ids), torch.Generator().manual_seed(SAMPLED.seed)
    for _ in range(SAMPLED.max_new_tokens):
        scores = filter_logits(next_scores(model, ids), config=SAMPLED, seen=torch.tensor(sorted(set(ids))))
        left = scores.isfinite().nonzero()[:, 0]
        ids.append(int(left[torch.multinomial(scores[left].softmax(0), 1, generator=generator)]))
    (result,) = generate(model, tokenizer=tokenizer, prompts=["the cat"], config=SAMPLED)
    assert list(result.token_ids) == ids[start:]


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", NEURAL)
def test_a_batch_of_prompts_of_different_lengths_equals_each_of_them_alone(tokenizer, kind, config):
    model = make(kind, tokenizer, ends=True)
    together = generate(model, tokenizer=tokenizer, prompts=PROMPTS, config=config)
    for prompt, result in zip(PROMPTS, together, strict=True):
        (alone,) = generate(model, tokenizer=tokenizer, prompts=[prompt], config=config)
        assert (result.prompt, result.token_ids, result.text) == (prompt, alone.token_ids, alone.text)
        assert result.finish_reason == alone.finish_reason
        assert result.log_probability == pytest.approx(alone.log_probability, rel=1e-4)


def test_rows_that_stop_early_leave_the_others_as_they_are(tokenizer):
    # "a" ends after two letters, "x" goes on for ever
    a, b, x, y = (letters(tokenizer, letter)[0] for letter in "atxy")
    model = chain(tokenizer, a, b, tokenizer.eos_id)
    with torch.no_grad():
        model.table.weight[x, y] = model.table.weight[y, x] = 50.0
    results = generate(model, tokenizer=tokenizer, prompts=["x", "a", "yx", "t"], config=replace(GREEDY))
    assert [result.text for result in results] == ["yx" * 10, "t", "yx" * 10, ""]
    assert [result.finish_reason for result in results] == ["length", "eos", "length", "eos"]


def test_no_prompts_give_no_results(tokenizer):
    assert generate(make("lstm", tokenizer), tokenizer=tokenizer, prompts=[]) == []


def test_an_empty_prompt_goes_on_from_the_begin_mark(tokenizer):
    model = chain(tokenizer, tokenizer.bos_id, *tokenizer.encode("cat"), tokenizer.eos_id)
    (result,) = generate(model, tokenizer=tokenizer, prompts=[""], config=GREEDY)
    assert (result.text, result.finish_reason) == ("cat", "eos")


# ---------------------------------------------------------------- seeds and distributions


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_the_seed_decides_the_text(tokenizer, kind):
    model = make(kind, tokenizer)

    def text(seed: int) -> str:
        return generate(model, tokenizer=tokenizer, prompts=["a"], config=GenerationConfig(seed=seed))[0].text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(5)}) == 5


def test_sampling_does_not_touch_the_global_random_state(tokenizer):
    model = make("lstm", tokenizer)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate(model, tokenizer=tokenizer, prompts=["a"])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_drawn_as_often_as_their_probabilities_say(tokenizer, temperature):
    wanted = dict(zip(letters(tokenizer, "tex"), (0.6, 0.3, 0.1), strict=True))
    model = build_model(BigramConfig(), vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.table.weight.fill_(-1e4)
        for token_id, probability in wanted.items():
            model.table.weight[:, token_id] = math.log(probability)
    config = GenerationConfig(max_new_tokens=1500, temperature=temperature, seed=1)
    (result,) = generate(model, tokenizer=tokenizer, prompts=["a"], config=config)
    total = sum(probability ** (1 / temperature) for probability in wanted.values())
    for token_id, probability in wanted.items():
        share = result.token_ids.count(token_id) / 1500
        assert share == pytest.approx(probability ** (1 / temperature) / total, abs=0.04)


def test_greedy_decoding_ignores_the_seed_and_the_filters_of_sampling(tokenizer):
    model = make("lstm", tokenizer)
    plain = generate(model, tokenizer=tokenizer, prompts=PROMPTS, config=GREEDY)
    other = replace(GREEDY, seed=9, temperature=0.1, top_k=3, top_p=0.2, min_p=0.5)
    assert generate(model, tokenizer=tokenizer, prompts=PROMPTS, config=other) == plain


def test_keeping_one_token_makes_sampling_greedy(tokenizer):
    model = make("lstm", tokenizer)
    greedy = generate(model, tokenizer=tokenizer, prompts=["the"], config=GREEDY)
    for config in (GenerationConfig(max_new_tokens=20, top_k=1), GenerationConfig(max_new_tokens=20, top_p=1e-6)):
        assert generate(model, tokenizer=tokenizer, prompts=["the"], config=config) == greedy


def test_a_repetition_penalty_turns_greedy_decoding_away_from_what_has_occurred(tokenizer):
    t, h, e = letters(tokenizer, "the")
    model = chain(tokenizer, t, h)
    with torch.no_grad():
        model.table.weight[h, t], model.table.weight[h, e] = 10.0, 9.0
    config = replace(GREEDY, max_new_tokens=2)
    assert generate(model, tokenizer=tokenizer, prompts=["t"], config=config)[0].text == "ht"
    config = replace(config, repetition_penalty=1.2)  # 10 / 1.2 < 9
    assert generate(model, tokenizer=tokenizer, prompts=["t"], config=config)[0].text == "he"


# ---------------------------------------------------------------- filters

NEG = -math.inf


def filtered(logits: list[float], seen: list[int] | None = None, **settings) -> list[float]:
    seen_ids = None if seen is None else torch.tensor(seen)
    return filter_logits(torch.tensor(logits), config=GenerationConfig(**settings), seen=seen_ids).tolist()


def kept(probabilities: list[float], **settings) -> list[int]:
    scores = filtered([math.log(p) for p in probabilities], **settings)
    return [place for place, score in enumerate(scores) if score > NEG]


def test_without_filters_scores_stay_as_they_are():
    assert filtered([1.0, -2.0, 0.5], seen=[0, 1]) == [1.0, -2.0, 0.5]


def test_filters_leave_their_input_alone():
    logits = torch.tensor([1.0, 2.0, 3.0])
    filter_logits(logits, config=SAMPLED, seen=torch.tensor([1]))
    assert logits.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(1, [NEG, NEG, 3.0, NEG]), (2, [NEG, 2.0, 3.0, NEG]), (4, [1.0, 2.0, 3.0, 0.0]), (9, [1.0, 2.0, 3.0, 0.0])],
)
def test_top_k_keeps_the_k_likeliest(top_k, expected):
    assert filtered([1.0, 2.0, 3.0, 0.0], top_k=top_k) == expected


@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_top_k_keeps_exactly_k_also_when_scores_tie(top_k):
    scores = filtered([1.0, 2.0, 2.0, 2.0, 2.0, 1.0], top_k=top_k)
    assert sum(score > NEG for score in scores) == top_k
    assert all(score == 2.0 for score in scores if score > NEG) or top_k == 5


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.01, [2]),
        (0.45, [2]),
        (0.55, [1, 2]),
        (0.75, [1, 2]),
        (0.85, [0, 1, 2]),
        (0.95, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_the_share(top_p, expected):
    assert kept([0.12, 0.3, 0.5, 0.08], top_p=top_p) == expected


def test_top_p_keeps_as_many_equal_tokens_as_are_needed():
    assert len(kept([0.1] * 10, top_p=0.35)) == 4


@pytest.mark.parametrize(
    ("min_p", "expected"), [(0.0, [0, 1, 2, 3]), (0.15, [0, 1, 2, 3]), (0.2, [0, 1, 2]), (0.5, [1, 2])]
)
def test_min_p_keeps_tokens_of_at_least_that_share_of_the_likeliest(min_p, expected):
    assert kept([0.12, 0.3, 0.5, 0.08], min_p=min_p) == expected


def test_the_penalty_makes_seen_tokens_less_likely_whatever_the_sign_of_their_score():
    found = filtered([2.0, -2.0, 2.0, -2.0, 0.0], seen=[0, 1, 4], repetition_penalty=2.0)
    assert found == [1.0, -4.0, 2.0, -2.0, 0.0]


@pytest.mark.parametrize("seen", [None, []])
def test_the_penalty_needs_tokens_that_have_been_seen(seen):
    assert filtered([2.0, -2.0], seen=seen, repetition_penalty=2.0) == [2.0, -2.0]


def test_temperature_divides_the_scores():
    assert filtered([2.0, -3.0, 0.0], temperature=0.5) == [4.0, -6.0, 0.0]


def test_filters_apply_one_after_the_other_each_on_what_the_one_before_left():
    # top_k renormalises .4 .3 to .57 .43, so .5 is reached by the first alone
    assert kept([0.4, 0.3, 0.2, 0.1], top_k=2, top_p=0.5) == [0]
    assert kept([0.4, 0.3, 0.2, 0.1], top_p=0.5) == [0, 1]
    # a low temperature comes before top_p: .4² is more than half of all squares
    assert kept([0.4, 0.3, 0.2, 0.1], temperature=0.5, top_p=0.5) == [0]
    # the penalty comes before top_k
    assert filtered([2.0, 1.5], seen=[0], repetition_penalty=2.0, top_k=1) == [NEG, 1.5]
    assert filtered([3.0, 1.0], seen=[0], repetition_penalty=1.5, temperature=0.5) == [4.0, 2.0]


def test_at_least_one_token_is_always_kept():
    assert len(kept([0.25, 0.25, 0.25, 0.25], top_k=1, top_p=1e-9, min_p=0.99)) == 1
    assert kept([0.1, 0.6, 0.3], top_k=1, top_p=1e-9, min_p=0.99) == [1]


# ---------------------------------------------------------------- endings


@pytest.fixture
def circle(tokenizer) -> LanguageModel:
    """…thethethe…"""
    t, h, e = letters(tokenizer, "the")
    return chain(tokenizer, t, h, e, t)


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (("eth",), "h"),
        (("e",), "h"),
        (("h",), ""),
        (("thet",), "he"),
        (("eth", "he"), ""),  # "he" comes first in the text
        (("e", "he"), ""),  # complete at once, but "he" begins first
        (("hethet", "ethe"), "h"),  # the one that is complete first
        (("", "eth"), "h"),
    ],
)
def test_a_stop_string_ends_the_text_in_front_of_it(tokenizer, circle, stops, text):
    (result,) = generate(circle, tokenizer=tokenizer, prompts=["t"], config=replace(GREEDY, stop_strings=stops))
    assert (result.text, result.finish_reason) == (text, "stop")
    assert "thethethe".startswith("t" + tokenizer.decode(result.token_ids))


def test_a_stop_string_in_the_prompt_or_across_its_end_does_not_count(tokenizer, circle):
    config = replace(GREEDY, max_new_tokens=6, stop_strings=("tht", "ax"))
    (result,) = generate(circle, tokenizer=tokenizer, prompts=["axt"], config=config)
    assert (result.text, result.finish_reason) == ("hethet", "length")
    config = replace(config, stop_strings=("th",))
    (result,) = generate(circle, tokenizer=tokenizer, prompts=["t"], config=config)
    assert (result.text, result.finish_reason) == ("he", "stop")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_max_new_tokens_ends_the_text(tokenizer, circle, count):
    config = replace(GREEDY, max_new_tokens=count)
    (result,) = generate(circle, tokenizer=tokenizer, prompts=["t"], config=config)
    assert (result.text, result.finish_reason) == ("hethethethe"[:count], "length")
    assert len(result.token_ids) == count


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_end_mark_ends_the_text_and_is_no_part_of_it(tokenizer, config):
    model = chain(tokenizer, *letters(tokenizer, "the"), tokenizer.eos_id)
    (result,) = generate(model, tokenizer=tokenizer, prompts=["t"], config=replace(config, repetition_penalty=1.0))
    assert (result.text, result.finish_reason) == ("he", "eos")
    assert list(result.token_ids) == letters(tokenizer, "he")


# ---------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", NEURAL)
def test_the_log_probability_is_that_of_the_unfiltered_model_over_the_new_tokens(tokenizer, kind, config):
    model = make(kind, tokenizer)
    for result in generate(model, tokenizer=tokenizer, prompts=PROMPTS, config=config):
        expected = log_probability(model, prompt_ids(tokenizer, result.prompt), result.token_ids)
        assert result.log_probability == pytest.approx(expected, rel=1e-5)


def test_the_log_probability_of_a_table_is_worked_out_by_hand(tokenizer):
    model = build_model(BigramConfig(), vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        for left, right in itertools.pairwise(letters(tokenizer, "the")):
            model.table.weight[left, right] = math.log(tokenizer.vocab_size - 1)  # one half
    (result,) = generate(
        model, tokenizer=tokenizer, prompts=["t"], config=GenerationConfig(max_new_tokens=2, do_sample=False)
    )
    assert result.text == "he"
    assert result.log_probability == pytest.approx(-2 * math.log(2), rel=1e-5)


# ---------------------------------------------------------------- cost and the context window


def forward_shapes(model: LanguageModel) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    model.register_forward_hook(lambda _module, inputs, _output: shapes.append(tuple(inputs[0].shape)))
    return shapes


@pytest.mark.parametrize("kind", ["lstm", "transformer", "gpt"])
def test_after_the_prompt_every_step_reads_exactly_one_token(tokenizer, kind):
    model = make(kind, tokenizer)
    shapes = forward_shapes(model)
    generate(model, tokenizer=tokenizer, prompts=["the cat"], config=replace(GREEDY, max_new_tokens=50))
    assert shapes == [(1, 9)] + [(1, 1)] * 49


def test_a_batch_reads_one_token_for_each_row_that_is_still_going(tokenizer):
    model = make("lstm", tokenizer)
    shapes = forward_shapes(model)
    generate(model, tokenizer=tokenizer, prompts=["a", "the"], config=replace(GREEDY, max_new_tokens=4))
    # bos, space and "a" for both; two more tokens until "the" writes too; "a" ends two steps before it
    assert shapes == [(2, 3)] + [(2, 1)] * 3 + [(1, 1)] * 2


def test_past_the_context_window_the_newest_half_is_read_again_and_generation_goes_on(tokenizer):
    model = make("window", tokenizer)
    ids = prompt_ids(tokenizer, "the cat")
    start, context = len(ids), list(ids)
    for _ in range(60):
        ids.append(int(next_scores(model, context).argmax()))
        context = ids[-8:] if len(context) == 16 else [*context, ids[-1]]
    shapes = forward_shapes(model)
    (result,) = generate(model, tokenizer=tokenizer, prompts=["the cat"], config=replace(GREEDY, max_new_tokens=60))
    assert list(result.token_ids) == ids[start:]
    assert result.finish_reason == "length"
    # 9 → 16, then again and again 8 → 16
    steps = [8] + [1] * 8
    assert [length for _, length in shapes] == ([9] + [1] * 7 + steps * 6)[:60]


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "prompts",
    [
        ["the cat", "a", "the dog"],
        ["a", "the cat sat on the mat and the dog ran"],
        ["the cat sat on the mat", "the cat sat on the mat and the dog ran", "xy the cat sat on the"],
    ],
    ids=["short", "short and long", "long"],
)
def test_past_the_context_window_a_batch_still_equals_its_prompts_alone(tokenizer, prompts, config):
    model = make("window", tokenizer)
    config = replace(config, max_new_tokens=60)
    together = generate(model, tokenizer=tokenizer, prompts=prompts, config=config)
    for prompt, result in zip(prompts, together, strict=True):
        (alone,) = generate(model, tokenizer=tokenizer, prompts=[prompt], config=config)
        assert len(result.token_ids) == 60
        assert result.token_ids == alone.token_ids


# ---------------------------------------------------------------- streaming


@pytest.mark.parametrize("stops", [(), ("e", "xx"), ("th",)], ids=["no stop", "one letter", "two letters"])
@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["lstm", "transformer", "window"])
def test_the_pieces_of_a_stream_joined_are_the_generated_text(tokenizer, kind, config, stops):
    for seed in range(4):
        model = make(kind, tokenizer, seed=seed, ends=True)
        config = replace(config, stop_strings=stops, max_new_tokens=30, seed=seed)
        (whole,) = generate(model, tokenizer=tokenizer, prompts=["the"], config=config)
        assert "".join(stream(model, tokenizer=tokenizer, prompt="the", config=config)) == whole.text


@pytest.mark.parametrize(("stops", "text"), [(("thx",), "he" + "the" * 6), (("ethet",), "h"), (("heth", "zz"), "")])
def test_text_that_could_begin_a_stop_string_is_held_back_until_it_is_decided(tokenizer, circle, stops, text):
    config = replace(GREEDY, max_new_tokens=20, stop_strings=stops)
    pieces = list(stream(circle, tokenizer=tokenizer, prompt="t", config=config))
    assert "".join(pieces) == text
    assert all(pieces)


def test_pieces_appear_as_soon_as_they_are_known(tokenizer, circle):
    model_steps = forward_shapes(circle)
    pieces = stream(circle, tokenizer=tokenizer, prompt="t", config=replace(GREEDY, max_new_tokens=5))
    seen = []
    for piece in pieces:
        seen.append((piece, len(model_steps)))
    assert seen == [("h", 1), ("e", 2), ("t", 3), ("h", 4), ("e", 5)]


def test_a_character_of_several_tokens_is_streamed_when_it_is_whole(tokenizer):
    lead, middle, last = (tokenizer._processor.piece_to_id(f"<0x{byte:02X}>") for byte in "本".encode())
    t, h = letters(tokenizer, "th")
    model = chain(tokenizer, t, lead, middle, last, h, t)
    config = replace(GREEDY, max_new_tokens=10)
    pieces = list(stream(model, tokenizer=tokenizer, prompt="t", config=config))
    assert pieces == ["本", "h", "t", "本", "h", "t"]
    assert generate(model, tokenizer=tokenizer, prompts=["t"], config=config)[0].text == "本ht本ht"


def test_bytes_that_never_become_a_character_are_shown_at_the_end_as_generate_shows_them(tokenizer):
    lead = tokenizer._processor.piece_to_id("<0xE6>")
    t, h = letters(tokenizer, "th")
    for ids in ((t, h, lead), (t, lead, h)):
        model = chain(tokenizer, *ids)
        config = replace(GREEDY, max_new_tokens=2)
        (whole,) = generate(model, tokenizer=tokenizer, prompts=["t"], config=config)
        assert "\ufffd" in whole.text
        assert "".join(stream(model, tokenizer=tokenizer, prompt="t", config=config)) == whole.text


def test_a_folding_tokenizer_streams_what_it_generates():
    tokenizer = Tokenizer.train(TEXTS * 3, TokenizerConfig(vocab_size=300, normalizer="nmt_nfkc_cf"))
    assert not tokenizer.lossless
    for seed in range(4):
        model = make("lstm", tokenizer, seed=seed)
        for prompt in ("", "The  cat ", "the"):
            config = replace(SAMPLED, seed=seed)
            (whole,) = generate(model, tokenizer=tokenizer, prompts=[prompt], config=config)
            assert "".join(stream(model, tokenizer=tokenizer, prompt=prompt, config=config)) == whole.text


# ---------------------------------------------------------------- beam search


def table(tokenizer: Tokenizer, rows: dict[int, dict[int, float]]) -> LanguageModel:
    """A bigram model with these probabilities; everything else is impossible."""
    model = build_model(BigramConfig(), vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.table.weight.fill_(-1e4)
        for left, row in rows.items():
            for right, probability in row.items():
                model.table.weight[left, right] = math.log(probability)
    return model.eval()


def beams(count: int, **settings) -> GenerationConfig:
    return GenerationConfig(**({"do_sample": False, "num_beams": count, "length_penalty": 0.0} | settings))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_beam_search_as_wide_as_everything_finds_the_likeliest_text(tiny_tokenizer, seed, depth):
    model = make("lstm", tiny_tokenizer, seed=seed, ends=True)
    start = prompt_ids(tiny_tokenizer, "ab")
    eos = tiny_tokenizer.eos_id
    others = [token_id for token_id in range(6) if token_id != eos]
    texts = list(itertools.product(others, repeat=depth))
    texts += [(*new, eos) for length in range(depth) for new in itertools.product(others, repeat=length)]
    best = max(texts, key=lambda new: log_probability(model, start, new))
    config = beams(6**depth, max_new_tokens=depth)
    (result,) = generate(model, tokenizer=tiny_tokenizer, prompts=["ab"], config=config)
    ended = best[-1] == eos
    assert result.token_ids == (best[:-1] if ended else best)
    assert result.finish_reason == ("eos" if ended else "length")


def test_beam_search_finds_what_greedy_decoding_misses(tiny_tokenizer):
    _, bos, eos, _, a, b = range(6)
    # a (0.6) looks better at first, but what follows b (0.4) is certain
    model = table(tiny_tokenizer, {bos: {a: 0.6, b: 0.4}, a: {a: 0.5, b: 0.3, eos: 0.2}, b: {b: 1.0}})
    greedy = GenerationConfig(max_new_tokens=3, do_sample=False)
    (first,) = generate(model, tokenizer=tiny_tokenizer, prompts=[""], config=greedy)
    (found,) = generate(model, tokenizer=tiny_tokenizer, prompts=[""], config=beams(2, max_new_tokens=3))
    assert (first.token_ids, found.token_ids) == ((a, a, a), (b, b, b))
    assert found.log_probability == pytest.approx(math.log(0.4), rel=1e-5)


def test_the_length_penalty_decides_between_short_and_long(tiny_tokenizer):
    _, _, eos, _, a, b = range(6)
    # the end at once: 0.4; "aaaa": 0.6 · 0.8³ = 0.31
    model = table(tiny_tokenizer, {b: {a: 0.6, eos: 0.4}, a: {a: 0.8, eos: 0.2}})
    texts = []
    for length_penalty in (0.0, 1.0):
        config = beams(100, max_new_tokens=4, length_penalty=length_penalty)
        texts += generate(model, tokenizer=tiny_tokenizer, prompts=["ab"], config=config)
    short, long = texts
    assert (short.token_ids, short.finish_reason) == ((), "eos")
    assert (long.token_ids, long.finish_reason) == ((a, a, a, a), "length")


@pytest.mark.parametrize("count", [2, 3, 8])
def test_texts_that_ended_early_do_not_cut_short_a_likelier_one_that_goes_on(tiny_tokenizer, count):
    _, _, eos, _, a, b = range(6)
    model = table(tiny_tokenizer, {b: {a: 0.9, eos: 0.1}, a: {a: 0.9, eos: 0.1}})
    config = beams(count, max_new_tokens=10, length_penalty=1.0)
    (result,) = generate(model, tokenizer=tiny_tokenizer, prompts=["ab"], config=config)
    assert (result.token_ids, result.finish_reason) == ((a,) * 10, "length")


@pytest.mark.parametrize("kind", ["lstm", "transformer", "gpt"])
def test_one_beam_is_greedy_decoding(tokenizer, kind):
    model = make(kind, tokenizer)
    for result in generate(model, tokenizer=tokenizer, prompts=PROMPTS, config=beams(1, max_new_tokens=12)):
        ids = prompt_ids(tokenizer, result.prompt)
        start = len(ids)
        for _ in range(12):
            ids.append(int(next_scores(model, ids).argmax()))
        assert list(result.token_ids) == ids[start:]


@pytest.mark.parametrize("kind", ["lstm", "transformer", "gpt"])
def test_beams_carry_the_state_of_their_own_text(tokenizer, kind):
    model = make(kind, tokenizer)
    for count in (2, 5):
        for result in generate(model, tokenizer=tokenizer, prompts=PROMPTS, config=beams(count, max_new_tokens=12)):
            expected = log_probability(model, prompt_ids(tokenizer, result.prompt), result.token_ids)
            assert result.log_probability == pytest.approx(expected, rel=1e-5)
            assert len(result.token_ids) == 12


def test_beam_search_goes_on_past_the_context_window(tokenizer):
    model = make("window", tokenizer)
    (result,) = generate(model, tokenizer=tokenizer, prompts=["the"], config=beams(3, max_new_tokens=40))
    assert len(result.token_ids) == 40


def test_beams_end_in_front_of_a_stop_string(tokenizer, circle):
    config = beams(3, max_new_tokens=10, stop_strings=("eth",))
    (result,) = generate(circle, tokenizer=tokenizer, prompts=["t"], config=config)
    assert (result.text, result.finish_reason) == ("h", "stop")


def test_the_log_probability_of_beams_is_that_of_the_unpenalised_model_too(tokenizer):
    model = make("lstm", tokenizer)
    config = beams(4, max_new_tokens=8, repetition_penalty=1.5)
    (result,) = generate(model, tokenizer=tokenizer, prompts=["the"], config=config)
    expected = log_probability(model, prompt_ids(tokenizer, "the"), result.token_ids)
    assert result.log_probability == pytest.approx(expected, rel=1e-5)


def test_the_end_mark_counts_the_same_in_greedy_decoding_and_in_beams(tiny_tokenizer):
    _, _, eos, _, a, b = range(6)
    model = table(tiny_tokenizer, {b: {a: 0.5, b: 0.3, eos: 0.2}, a: {eos: 0.5, a: 0.3, b: 0.2}})
    greedy = GenerationConfig(max_new_tokens=4, do_sample=False)
    (first,) = generate(model, tokenizer=tiny_tokenizer, prompts=["ab"], config=greedy)
    (found,) = generate(model, tokenizer=tiny_tokenizer, prompts=["ab"], config=beams(4, max_new_tokens=4))
    assert first.token_ids == found.token_ids == (a,)
    assert first.finish_reason == found.finish_reason == "eos"
    assert found.log_probability == pytest.approx(first.log_probability, rel=1e-5)


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"temperature": math.nan}, "temperature must be above 0"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"min_p": -0.1}, "min_p must be at least 0 and below 1"),
        ({"min_p": 1.0}, "min_p must be at least 0 and below 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"num_beams": 0, "do_sample": False}, "num_beams must be at least 1"),
        ({"num_beams": 2}, "beam search cannot be combined with sampling"),
    ],
)
def test_a_value_out_of_range_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**settings)


def test_values_at_the_edge_of_their_range_are_fine():
    config = GenerationConfig(max_new_tokens=1, temperature=1e-3, top_k=0, top_p=1.0, min_p=0.0, num_beams=1)
    assert config.max_new_tokens == 1


def test_the_presets_go_from_narrow_to_wide():
    """Entropy of the filtered distribution grows from precise through balanced to creative."""
    logits = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 2
    entropies = []
    for name in ("precise", "balanced", "creative"):
        probabilities = filter_logits(logits, config=PRESETS[name]).softmax(0)
        entropies.append(float(torch.special.entr(probabilities).sum()))
    assert set(PRESETS) == {"precise", "balanced", "creative"}
    assert entropies[0] < entropies[1] < entropies[2]
