"""Scores of tokens against one forward pass, where tokens begin, and texts that are advanced step by step."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_texts

from lm_retrieval.checkpoint import Checkpoint
from lm_retrieval.errors import ConfigError, CorpusError
from lm_retrieval.generation import Continuation, GenerationConfig, advance, generate
from lm_retrieval.perplexity import perplexity, total
from lm_retrieval.scoring import score_tokens, token_offsets
from lm_retrieval.tokenizer import Tokenizer, prompt_ids

TEXTS = [make_texts(1)[0], "a", "the river ä日 carries", *make_texts(20, seed=3)]


@pytest.fixture(scope="module", params=["lstm", "transformer"])
def checkpoint(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return Checkpoint.load(make_checkpoint(request.param, seed=8))


def test_scores_are_those_of_one_forward_pass(checkpoint: Checkpoint) -> None:
    sequences = [prompt_ids(checkpoint.tokenizer, text)[:60] for text in TEXTS]
    for ids, scores in zip(sequences, score_tokens(checkpoint.model, sequences, top=4), strict=True):
        with torch.inference_mode():
            expected = checkpoint.model.logits(checkpoint.model(torch.tensor([ids[:-1]])).hidden)[0].log_softmax(-1)
        assert [score.token_id for score in scores] == ids[1:]
        for row, score in zip(expected, scores, strict=True):
            assert score.log_probability == pytest.approx(float(row[score.token_id]), abs=1e-4)
            best = row.topk(4)
            assert [token_id for token_id, _ in score.top] == best.indices.tolist()
            assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_scores_of_long_texts_add_up_to_the_perplexity(checkpoint: Checkpoint) -> None:
    text = " ".join(make_texts(30, seed=4))
    ids = prompt_ids(checkpoint.tokenizer, text)
    assert len(ids) > 300
    (scores,) = score_tokens(checkpoint.model, [ids])
    report = perplexity(checkpoint.model, tokenizer=checkpoint.tokenizer, texts=[text])
    assert sum(score.log_probability for score in scores) == pytest.approx(-report.nll, rel=1e-5)
    assert all(score.top == () for score in scores)


def test_nothing_to_score(checkpoint: Checkpoint) -> None:
    assert score_tokens(checkpoint.model, [[1], []]) == [[], []]
    assert score_tokens(checkpoint.model, []) == []


def test_tokens_begin_where_their_text_does(tokenizer: Tokenizer) -> None:
    text = "the river ä日x carries  cold\nwater"
    ids = tokenizer.encode(text)
    offsets = token_offsets(tokenizer, ids)
    assert offsets == sorted(offsets)
    for place, (token_id, offset) in enumerate(zip(ids, offsets, strict=True)):
        shown = tokenizer.token_text(token_id)
        if not shown.startswith("bytes:"):
            assert text[offset:].startswith(shown if place else shown.removeprefix(" "))
    shown_texts = map(tokenizer.token_text, ids)
    parts = {offset for shown, offset in zip(shown_texts, offsets, strict=True) if shown.startswith("bytes:")}
    assert parts == {text.index("ä"), text.index("日")}  # all bytes of a character begin where it does
    assert token_offsets(tokenizer, []) == []


def test_names_of_bytes_and_marks(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_text(token_id) for token_id in tokenizer.encode("é")][-2:] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert (tokenizer.mark_text(tokenizer.bos_id), tokenizer.mark_text(tokenizer.eos_id)) == ("<s>", "</s>")


def test_a_begin_mark_is_not_put_before_another(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the river")
    assert prompt_ids(tokenizer, "the river") == prompt_ids(tokenizer, ids) == [tokenizer.bos_id, *ids]
    assert prompt_ids(tokenizer, [tokenizer.bos_id, *ids]) == [tokenizer.bos_id, *ids]
    assert prompt_ids(tokenizer, "") == [tokenizer.bos_id]


# ---------------------------------------------------------------- step by step


def test_rows_of_different_settings_advance_together_as_alone(checkpoint: Checkpoint) -> None:
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    configs = [GenerationConfig(max_new_tokens=n, seed=n, temperature=0.5 + n / 10) for n in (3, 9, 6)]
    rows = [Continuation(tokenizer, text, config, top_scores=2) for text, config in zip(TEXTS, configs, strict=False)]
    for _ in advance(model, rows):
        pass
    for row, text, config in zip(rows, TEXTS, configs, strict=False):
        (alone,) = generate(model, tokenizer=tokenizer, prompts=[text], config=config)
        found = row.result()
        assert (found.text, found.token_ids, found.finish_reason) == (alone.text, alone.token_ids, alone.finish_reason)
        scored = [score for score in found.scores if score.token_id != tokenizer.eos_id]
        assert [score.token_id for score in scored] == list(found.token_ids)
        assert sum(score.log_probability for score in scored) == pytest.approx(found.log_probability, rel=1e-5)
        whole = score_tokens(model, [row.token_ids])[0][row.prompt_length - 1 :]
        assert [s.log_probability for s in scored] == pytest.approx([s.log_probability for s in whole], abs=1e-4)


def test_a_cancelled_row_stops_and_the_others_go_on(checkpoint: Checkpoint) -> None:
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    config = GenerationConfig(max_new_tokens=20, seed=1)
    rows = [Continuation(tokenizer, "the river", config) for _ in range(2)]
    for step, _ in enumerate(advance(model, rows)):
        if step == 4:
            rows[0].cancel()
    assert rows[0].result().finish_reason == "cancelled"
    assert len(rows[0].new_ids) == 5
    (alone,) = generate(model, tokenizer=tokenizer, prompts=["the river"], config=config)
    assert rows[1].result().token_ids == alone.token_ids
    assert list(advance(model, [rows[0]])) == []


def test_prompts_may_be_token_ids(checkpoint: Checkpoint) -> None:
    config = GenerationConfig(max_new_tokens=5, seed=1)
    ids = checkpoint.tokenizer.encode("the river")
    rows = [Continuation(checkpoint.tokenizer, prompt, config) for prompt in ("the river", ids)]
    for _ in advance(checkpoint.model, rows):
        pass
    assert rows[0].result() == rows[1].result()


def test_beams_cannot_be_advanced(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="beam search"):
        Continuation(checkpoint.tokenizer, "a", GenerationConfig(num_beams=2, do_sample=False))


def test_reports_add_up(checkpoint: Checkpoint) -> None:
    reports = [perplexity(checkpoint.model, tokenizer=checkpoint.tokenizer, texts=[text]) for text in TEXTS]
    whole = perplexity(checkpoint.model, tokenizer=checkpoint.tokenizer, texts=TEXTS)
    found, expected = total(reports).to_dict(), whole.to_dict()
    assert found.pop("context") == expected.pop("context")
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(CorpusError):
        total([])
