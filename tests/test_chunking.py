"""Chunks: nothing is dropped, nothing is too long, ends fall on sentence ends, and neighbours overlap as asked."""

import time
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm_retrieval.config import TokenizerConfig
from lm_retrieval.corpus.chunking import Chunk, chunk_text
from lm_retrieval.tokenizer import Tokenizer

SENTENCES = [
    "The wing of an aircraft stalls when the angle of attack is too large.",
    "A library holds books and maps, and readers borrow them for three weeks.",
    "Where are the books about flight?",
    "Look on the second floor, near the window!",
    "Diets rich in fibre lower cholesterol.",
]
PROSE = " ".join(SENTENCES)
TOKENIZERS = {
    name: Tokenizer.train([PROSE, *SENTENCES] * 3, TokenizerConfig(vocab_size=380, normalizer=name))
    for name in ("identity", "nmt_nfkc_cf")
}
both = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)

examples = settings(
    max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
pieces = st.sampled_from(
    [*SENTENCES, "library", "x" * 600, "a.", "日本語", "\u200b", "\u2581", "\U0001f600", "\0", "e\u0301", "\x85"]
)
spaces = st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u3000", " " * 70])
any_text = st.lists(pieces | spaces | st.text(st.characters(exclude_categories=["Cs"]), max_size=10), max_size=30).map(
    "".join
)


def chunks_of(text: str, tokenizer: Tokenizer, max_tokens: int, overlap_tokens: int = 0) -> list[Chunk]:
    """The chunks, after checking what holds for all: exact ids, the limit, and that only white space is left out."""
    chunks = list(chunk_text(text, tokenizer=tokenizer, max_tokens=max_tokens, overlap_tokens=overlap_tokens))
    covered = bytearray(len(text))
    for chunk in chunks:
        assert chunk.token_ids == tokenizer.encode(text[chunk.start : chunk.end])
        assert len(chunk.token_ids) <= max_tokens
        assert text[chunk.start : chunk.end].strip()
        covered[chunk.start : chunk.end] = b"\1" * (chunk.end - chunk.start)
    assert not "".join(character for character, seen in zip(text, covered, strict=True) if not seen).strip()
    return chunks


def text_of(text: str, chunk: Chunk) -> str:
    return text[chunk.start : chunk.end]


@both
def test_any_text_is_covered_by_chunks_within_the_limit(tokenizer):
    @examples
    @given(any_text, st.integers(16, 64), st.floats(0, 0.5))
    def check(text, max_tokens, share):
        chunks_of(text, tokenizer, max_tokens, int(max_tokens * share))

    check()


@both
def test_chunks_of_any_text_begin_and_end_after_the_one_before(tokenizer):
    @examples
    @given(any_text, st.integers(16, 64), st.floats(0, 0.5))
    def check(text, max_tokens, share):
        chunks = chunk_text(text, tokenizer=tokenizer, max_tokens=max_tokens, overlap_tokens=int(max_tokens * share))
        for before, after in pairwise(chunks):
            assert before.start < after.start
            assert before.end < after.end

    check()


@both
def test_no_chunk_of_prose_lies_inside_the_one_before(tokenizer):
    text = " ".join(SENTENCES[(place * place) % 5] for place in range(60))
    for max_tokens in range(32, 80, 4):
        chunks = chunks_of(text, tokenizer, max_tokens, max_tokens // 2)
        assert [after for before, after in pairwise(chunks) if after.end <= before.end] == []


@both
@pytest.mark.parametrize("word", ["\ufdfa", "\u3316", "\ufb03"])
def test_characters_that_fold_into_many_stay_within_the_limit(tokenizer, word):
    chunks_of(word * 40, tokenizer, 64)


@both
@pytest.mark.parametrize("text", ["", " ", "\n\n\t ", " " * 5000, "\n" * 5000])
def test_blank_text_has_no_chunks(tokenizer, text):
    assert list(chunk_text(text, tokenizer=tokenizer, max_tokens=16)) == []


@both
def test_text_that_fits_is_one_chunk(tokenizer):
    count = len(tokenizer.encode(PROSE))
    assert chunks_of(PROSE, tokenizer, count, 8) == [Chunk(0, len(PROSE), tokenizer.encode(PROSE))]
    assert len(chunks_of(PROSE, tokenizer, count - 1)) > 1


@both
def test_chunks_without_overlap_share_nothing_and_are_well_filled(tokenizer):
    text = "wing library books " * 200
    chunks = chunks_of(text, tokenizer, 32)
    assert all(before.end <= after.start for before, after in pairwise(chunks))
    assert min(len(chunk.token_ids) for chunk in chunks[:-1]) > 24


@both
@pytest.mark.parametrize("overlap_tokens", [4, 8, 16])
def test_neighbours_share_up_to_the_overlap(tokenizer, overlap_tokens):
    text = "wing library books " * 200
    longest_word = max(len(tokenizer.encode(word)) for word in text.split())
    for before, after in pairwise(chunks_of(text, tokenizer, 32, overlap_tokens)):
        shared = len(tokenizer.encode(text[after.start : before.end].strip()))
        assert overlap_tokens - longest_word < shared <= overlap_tokens


@both
def test_overlap_of_any_text_is_bounded(tokenizer):
    @examples
    @given(any_text, st.integers(16, 64), st.floats(0, 0.5))
    def check(text, max_tokens, share):
        overlap_tokens = int(max_tokens * share)
        chunks = chunk_text(text, tokenizer=tokenizer, max_tokens=max_tokens, overlap_tokens=overlap_tokens)
        for before, after in pairwise(chunks):
            if after.start < before.end:
                # a chunk's first word may take one token more than the same word within a text
                assert len(tokenizer.encode(text[after.start : before.end])) <= overlap_tokens + 1

    check()


@both
def test_chunks_of_prose_end_at_sentence_ends_and_begin_at_sentence_starts(tokenizer):
    text = " ".join(SENTENCES * 6)
    limit = 2 * max(len(tokenizer.encode(sentence)) for sentence in SENTENCES)
    chunks = chunks_of(text, tokenizer, limit)
    assert len(chunks) > 6
    for chunk in chunks:
        assert text_of(text, chunk)[-1] in ".?!"
        assert text_of(text, chunk).startswith(tuple(SENTENCES))


@both
def test_overlap_begins_at_a_sentence_start(tokenizer):
    text = " ".join(SENTENCES * 6)
    longest = max(len(tokenizer.encode(sentence)) for sentence in SENTENCES)
    chunks = chunks_of(text, tokenizer, 3 * longest, longest)
    assert all(text_of(text, chunk).startswith(tuple(SENTENCES)) for chunk in chunks)
    assert any(after.start < before.end for before, after in pairwise(chunks))


@both
def test_quotes_and_brackets_after_a_full_stop_stay_with_their_sentence(tokenizer):
    sentence = 'He said "the wing stalls." (It did.) '
    for chunk in chunks_of(sentence * 30, tokenizer, 5 * len(tokenizer.encode(sentence)) // 2):
        assert text_of(sentence * 30, chunk).rstrip().endswith(('stalls."', "did.)"))


@both
@pytest.mark.parametrize("line_end", [" ", "\n"], ids=["one line", "wrapped"])
def test_paragraph_ends_count_as_sentence_ends(tokenizer, line_end):
    paragraph = f"the wing of an aircraft and{line_end}the books of a library"
    text = "\n\n".join([paragraph] * 40)
    for chunk in chunks_of(text, tokenizer, 7 * len(tokenizer.encode(paragraph)) // 2):
        assert set(text_of(text, chunk).strip().split("\n\n")) == {paragraph}


@both
def test_ends_of_wrapped_lines_are_not_sentence_ends(tokenizer):
    text = " ".join(SENTENCES * 12).replace(" of ", "\nof ").replace(" and ", "\nand ")
    limit = 4 * max(len(tokenizer.encode(sentence)) for sentence in SENTENCES)
    chunks = chunks_of(text, tokenizer, limit)
    assert len(chunks) > 8
    assert all(text_of(text, chunk).strip()[-1] in ".?!" for chunk in chunks)


@both
@pytest.mark.parametrize("text", ["x" * 5000, "日本語" * 1000, "\U0001f600" * 700, "a.b" * 2000])
def test_words_without_spaces_are_cut(tokenizer, text):
    chunks = chunks_of(text, tokenizer, 32, 8)
    assert "".join(text[before.start : after.start] for before, after in pairwise(chunks)) == text[: chunks[-1].start]
    assert chunks[-1].end == len(text)


@both
def test_giant_word_does_not_swallow_its_neighbours(tokenizer):
    text = f"{PROSE} {'x' * 3000} {PROSE}"
    chunks = chunks_of(text, tokenizer, 64)
    assert text_of(text, chunks[0]).startswith("The wing")
    assert text_of(text, chunks[-1]).endswith("lower cholesterol.")


@both
def test_two_megabytes_are_chunked_in_seconds(tokenizer):
    text = (PROSE + "\n") * (2_000_000 // (len(PROSE) + 1))
    started = time.process_time()
    chunks = list(chunk_text(text, tokenizer=tokenizer, max_tokens=256, overlap_tokens=32))
    assert time.process_time() - started < 8
    assert len(chunks) > 2000
    assert (chunks[0].start, text[chunks[-1].end :].strip()) == (0, "")
    assert all(after.start <= before.end + 1 for before, after in pairwise(chunks))
