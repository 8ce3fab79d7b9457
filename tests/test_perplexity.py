"""Perplexity: hand-worked figures, contexts scored by other means, and independence of batch sizes."""

import math

import pytest
import torch

from lm_retrieval.config import BigramConfig, LstmConfig, TokenizerConfig, TransformerConfig
from lm_retrieval.errors import ConfigError, CorpusError
from lm_retrieval.models import LanguageModel, build_model
from lm_retrieval.perplexity import PerplexityReport, perplexity
from lm_retrieval.tokenizer import Tokenizer

TEXTS = [
    "the cat sat on the mat and looked at the dog",
    "x",
    "a dog ran\nover the field",
    "it was late",
    "the sun set behind the hills while the cat slept on the warm stones of the old wall",
]
CONTEXTS = [("lstm", "carried"), ("lstm", "disjoint"), ("lstm", "strided")]
CONTEXTS += [("transformer", "disjoint"), ("transformer", "strided")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([*TEXTS, "ä"], TokenizerConfig(type="char", vocab_size=400))


def make(kind: str, tokenizer: Tokenizer) -> LanguageModel:
    configs = {
        "lstm": LstmConfig(embedding_dim=16, hidden_dim=16, num_layers=2),
        "transformer": TransformerConfig(
            embedding_dim=16, num_layers=2, num_heads=2, feedforward_dim=32, max_length=16
        ),
        "bigram": BigramConfig(),
    }
    torch.manual_seed(0)
    model = build_model(configs[kind], vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def uniform(tokenizer: Tokenizer) -> LanguageModel:
    return build_model(BigramConfig(), vocab_size=tokenizer.vocab_size)


def sure_of(tokenizer: Tokenizer, text: str, probabilities: list[float]) -> LanguageModel:
    """A bigram model that gives the tokens of `text` these probabilities, one after the other."""
    model = uniform(tokenizer)
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    assert len(set(ids[:-1])) == len(ids) - 1 == len(probabilities)
    with torch.no_grad():
        for left, right, p in zip(ids, ids[1:], probabilities, strict=False):
            model.table.weight[left, right] = math.log(p / (1 - p) * (tokenizer.vocab_size - 1))
    return model


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode(text)]


@torch.inference_mode()
def nll_of_last(model: LanguageModel, ids: list[int], count: int = 1) -> float:
    """Nats of the last `count` ids, from one pass that starts anew with the first."""
    scores = model.logits(model(torch.tensor([ids[:-1]])).hidden[0]).double().log_softmax(-1)
    places = range(len(ids) - 1 - count, len(ids) - 1)
    return -sum(scores[place, ids[place + 1]].item() for place in places)


# ---------------------------------------------------------------- definitions


def test_a_bigram_table_gives_the_figures_worked_out_by_hand(tokenizer):
    # four tokens (a space in front) of 1, 2, 3 and 4 bits
    model = sure_of(tokenizer, "aäd", [1 / 2, 1 / 4, 1 / 8, 1 / 16])
    report = perplexity(model, tokenizer=tokenizer, texts=["aäd"])
    # "ä" is a character of its own in this vocabulary, but two bytes
    assert (report.tokens, report.words, report.characters, report.bytes, report.documents) == (4, 1, 3, 4, 1)
    assert report.nll == pytest.approx(10 * math.log(2), rel=1e-6)
    assert report.perplexity == pytest.approx(2**2.5, rel=1e-6)
    assert report.word_perplexity == pytest.approx(2**10, rel=1e-5)
    assert report.byte_perplexity == pytest.approx(2**2.5, rel=1e-6)
    assert report.bits_per_byte == pytest.approx(10 / 4, rel=1e-6)
    assert report.bits_per_character == pytest.approx(10 / 3, rel=1e-6)
    assert report.context == "carried"


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity(tokenizer):
    report = perplexity(uniform(tokenizer), tokenizer=tokenizer, texts=TEXTS)
    assert report.perplexity == pytest.approx(tokenizer.vocab_size, rel=1e-5)


def test_the_derived_figures_follow_from_the_sums():
    report = PerplexityReport(
        nll=120.0,
        tokens=50,
        words=20,
        characters=90,
        bytes=100,
        documents=2,
        context="strided",
        window=8,
        stride=4,
    )
    figures = report.to_dict()
    assert figures["perplexity"] == pytest.approx(math.exp(2.4))
    assert figures["word_perplexity"] == pytest.approx(math.exp(6.0))
    assert figures["byte_perplexity"] == pytest.approx(math.exp(1.2))
    assert figures["bits_per_byte"] == pytest.approx(1.2 / math.log(2))
    assert figures["bits_per_character"] == pytest.approx(120 / 90 / math.log(2))
    assert {name: figures[name] for name in ("nll", "tokens", "words", "context", "window", "stride")} == {
        "nll": 120.0,
        "tokens": 50,
        "words": 20,
        "context": "strided",
        "window": 8,
        "stride": 4,
    }


def test_words_characters_and_bytes_are_counted_over_all_documents(tokenizer):
    report = perplexity(uniform(tokenizer), tokenizer=tokenizer, texts=["one  two\nthree", "ä ö"])
    assert (report.words, report.characters, report.bytes, report.documents) == (3 + 2, 14 + 3, 14 + 5, 2)


def test_documents_share_no_context(tokenizer):
    for kind, context in CONTEXTS:
        model = make(kind, tokenizer)
        together = perplexity(model, tokenizer=tokenizer, texts=TEXTS, context=context, window=9)
        alone = [perplexity(model, tokenizer=tokenizer, texts=[t], context=context, window=9) for t in TEXTS]
        assert together.nll == pytest.approx(sum(report.nll for report in alone), rel=1e-5)
        assert together.tokens == sum(report.tokens for report in alone)


def test_the_model_is_scored_in_evaluation_mode(tokenizer):
    torch.manual_seed(0)
    model = build_model(LstmConfig(embedding_dim=16, hidden_dim=16, dropout=0.5), vocab_size=tokenizer.vocab_size)
    first = perplexity(model.train(), tokenizer=tokenizer, texts=TEXTS).nll
    assert perplexity(model.train(), tokenizer=tokenizer, texts=TEXTS).nll == first


# ---------------------------------------------------------------- contexts


@pytest.mark.parametrize(("kind", "context"), CONTEXTS)
@pytest.mark.parametrize("window", [5, 16])
def test_figures_do_not_depend_on_the_batch_size(tokenizer, kind, context, window):
    model = make(kind, tokenizer)
    reports = [
        perplexity(model, tokenizer=tokenizer, texts=TEXTS, context=context, window=window, batch_size=size)
        for size in (1, 2, 3, 64)
    ]
    for report in reports[1:]:
        assert report.nll == pytest.approx(reports[0].nll, rel=1e-5)
        assert report.tokens == reports[0].tokens


@pytest.mark.parametrize("window", [1, 7, 256])
def test_carried_equals_one_long_forward_pass(tokenizer, window):
    model = make("lstm", tokenizer)
    report = perplexity(model, tokenizer=tokenizer, texts=TEXTS, context="carried", window=window)
    expected = sum(nll_of_last(model, ids, len(ids) - 1) for ids in (ids_of(tokenizer, text) for text in TEXTS))
    assert report.nll == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
@pytest.mark.parametrize("window", [1, 6, 16])
def test_disjoint_equals_windows_scored_one_by_one(tokenizer, kind, window):
    model = make(kind, tokenizer)
    expected = 0.0
    for text in TEXTS:
        ids = ids_of(tokenizer, text)
        for start in range(0, len(ids) - 1, window):
            piece = ids[start : start + window + 1]
            expected += nll_of_last(model, piece, len(piece) - 1)
    report = perplexity(model, tokenizer=tokenizer, texts=TEXTS, context="disjoint", window=window)
    assert report.nll == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 1), (8, 3), (8, 8), (16, 5)])
def test_strided_scores_each_token_in_the_first_window_that_reaches_it(tokenizer, kind, window, stride):
    model = make(kind, tokenizer)
    expected, count = 0.0, 0
    for text in TEXTS:
        ids = ids_of(tokenizer, text)
        for place in range(1, len(ids)):
            first_window = max(0, math.ceil((place - window) / stride))
            expected += nll_of_last(model, ids[first_window * stride : place + 1])
            count += 1
    report = perplexity(model, tokenizer=tokenizer, texts=TEXTS, context="strided", window=window, stride=stride)
    assert report.nll == pytest.approx(expected, rel=1e-5)
    assert report.tokens == count


@pytest.mark.parametrize("context", ["carried", "disjoint", "strided"])
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 1), (7, 2), (10, 9), (43, 20), (44, 44), (500, 1)])
def test_every_token_is_scored_exactly_once(tokenizer, context, window, stride):
    # under a uniform model the sum counts the tokens
    report = perplexity(
        uniform(tokenizer), tokenizer=tokenizer, texts=TEXTS, context=context, window=window, stride=stride
    )
    assert report.tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert report.nll == pytest.approx(report.tokens * math.log(tokenizer.vocab_size), rel=1e-5)


def test_a_window_longer_than_every_text_makes_all_contexts_equal(tokenizer):
    model = make("lstm", tokenizer)
    whole = perplexity(model, tokenizer=tokenizer, texts=TEXTS, context="disjoint", window=500)
    carried = perplexity(model, tokenizer=tokenizer, texts=TEXTS, context="carried", window=3)
    strided = perplexity(model, tokenizer=tokenizer, texts=TEXTS, context="strided", window=500, stride=1)
    assert carried.nll == pytest.approx(whole.nll, rel=1e-5)
    assert strided.nll == pytest.approx(whole.nll, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "context", "window", "stride"),
    [("lstm", "carried", 256, 256), ("transformer", "disjoint", 16, 16), ("bigram", "carried", 256, 256)],
)
def test_the_kind_of_model_chooses_context_and_window(tokenizer, kind, context, window, stride):
    report = perplexity(make(kind, tokenizer), tokenizer=tokenizer, texts=TEXTS)
    assert (report.context, report.window, report.stride) == (context, window, stride)


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (7, 3), (1, 1)])
def test_the_stride_is_half_a_window_unless_told(tokenizer, window, stride):
    model = make("transformer", tokenizer)
    report = perplexity(model, tokenizer=tokenizer, texts=TEXTS[:1], context="strided", window=window)
    assert report.stride == stride


# ---------------------------------------------------------------- errors


def test_a_transformer_carries_no_state(tokenizer):
    with pytest.raises(ConfigError, match="'carried' needs a recurrent model"):
        perplexity(make("transformer", tokenizer), tokenizer=tokenizer, texts=TEXTS, context="carried")


def test_a_window_beyond_the_context_window_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="window 17 exceeds the model's context window of 16 tokens"):
        perplexity(make("transformer", tokenizer), tokenizer=tokenizer, texts=TEXTS, window=17)


@pytest.mark.parametrize("stride", [-1, 9])
def test_a_stride_outside_the_window_is_refused(tokenizer, stride):
    with pytest.raises(ConfigError, match=f"stride {stride} must be between 1 and the window of 8 tokens"):
        perplexity(
            make("lstm", tokenizer), tokenizer=tokenizer, texts=TEXTS, context="strided", window=8, stride=stride
        )


def test_a_negative_window_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="window"):  # no texts: a window that moves backwards would never end
        perplexity(uniform(tokenizer), tokenizer=tokenizer, texts=[], window=-5)


def test_nothing_to_score_is_an_error(tokenizer):
    with pytest.raises(CorpusError, match="no text to score"):
        perplexity(uniform(tokenizer), tokenizer=tokenizer, texts=[])


@pytest.mark.parametrize("context", ["carried", "disjoint"])
def test_empty_documents_have_no_tokens_to_score(tokenizer, context):
    with pytest.raises(CorpusError, match="no text to score"):
        perplexity(uniform(tokenizer), tokenizer=tokenizer, texts=["", ""], context=context)


@pytest.mark.parametrize("context", ["carried", "disjoint"])
def test_an_empty_document_among_others_adds_nothing_but_itself(tokenizer, context):
    model = make("lstm", tokenizer)
    without = perplexity(model, tokenizer=tokenizer, texts=["a dog", "it"], context=context)
    report = perplexity(model, tokenizer=tokenizer, texts=["a dog", "", "it"], context=context)
    assert report.documents == without.documents + 1
    assert report.tokens == without.tokens
    assert report.nll == pytest.approx(without.nll, rel=1e-5)
