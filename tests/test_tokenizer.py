"""Tokenizers: exact round trips, SentencePiece's own ids, and training that gives the same model every time."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm_retrieval.config import TokenizerConfig
from lm_retrieval.errors import StorageError, TokenizerError
from lm_retrieval.tokenizer import Tokenizer

NFCORPUS = Path(os.environ.get("LMR_DATA", Path(__file__).parents[2] / "shared" / "data")) / "collections" / "nfcorpus"
NORMALIZERS = ["identity", "nmt_nfkc", "nmt_nfkc_cf"]
TEXTS = [
    "The wing of an aircraft stalls when the angle of attack is too large.",
    "A library holds books, journals and maps; readers borrow them for three weeks.",
    "Where are the books about flight?\nOn the second floor, near the window.",
    "Statins lower cholesterol, and diets rich in fibre may do the same (Müller, 2014).",
    'def join(self, parts):\n    """Joins parts."""\n    return ", ".join(parts)',
] * 4

examples = settings(
    max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
characters = st.characters(exclude_categories=["Cs"])
odd_words = st.sampled_from(
    [
        "the",
        "library",
        "x" * 400,
        "日本語",
        "\ufdfa",
        "e\u0301",
        "\u0301",
        "\u200b",
        "\ufeff",
        "\0",
        "\U0001f600",
        "\x85",
    ]
)
odd_spaces = st.sampled_from(["", " ", "  ", " " * 70, "\n", "\n\n", "\t", "\r\n", " \n "])
# words stay under the 512 characters that are encoded at once: a blank or line end follows each
spaced_text = st.lists(
    st.tuples(odd_words | st.text(characters, max_size=10), odd_spaces.filter(bool)), max_size=15
).map(lambda pairs: "".join(word + space for word, space in pairs))
any_text = st.text(characters, max_size=80) | spaced_text
text_without_marker = any_text.map(lambda text: text.replace("\u2581", "_"))


def train(normalizer: str = "identity", *, kind: str = "bpe", vocab_size: int = 400, texts=TEXTS) -> Tokenizer:
    return Tokenizer.train(texts, TokenizerConfig(type=kind, vocab_size=vocab_size, normalizer=normalizer))


TRAINED = {name: train(name) for name in NORMALIZERS}
EXACT = TRAINED["identity"]


# ---------------------------------------------------------------- round trips


@examples
@given(any_text)
def test_identity_round_trip_is_exact(text):
    assert EXACT.decode(EXACT.encode(text)) == text


@examples
@given(any_text)
def test_character_round_trip_is_exact(text):
    assert CHARACTERS.decode(CHARACTERS.encode(text)) == text


CHARACTERS = train(kind="char")


@pytest.mark.parametrize("tokenizer", [EXACT, CHARACTERS], ids=["bpe", "char"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " leading and trailing ",
        "a  b   c",
        "\n",
        "\n\n a\n b \n",
        "\ttab\t",
        "\r\n\r",
        " " * 1000 + "x",
        "\u2581",
        "a\u2581b \u2581 \u2581\u2581",
        "nul \0 in \0\0",
        "<s> </s> <unk> <0x41>",
        "\ufb01 \u00a0 \u200b \ufeff",
        "\U0001f469\u200d\U0001f680 e\u0301 é",
        "word" * 1000,
        "日本" * 700,
        "a" * 511 + " b" + "a" * 512 + "\u2581" + "c" * 513,
    ],
)
def test_identity_round_trip_of_hard_texts(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [("identity", "\ufb01 The  Dog\n"), ("nmt_nfkc", "fi The Dog"), ("nmt_nfkc_cf", "fi the dog")],
)
def test_normalizer_decides_what_is_folded(normalizer, expected):
    tokenizer = TRAINED[normalizer]
    assert tokenizer.decode(tokenizer.encode("\ufb01 The  Dog\n")) == expected
    assert tokenizer.lossless == (normalizer == "identity")


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_begin_and_end_marks_vanish_when_decoded(normalizer):
    tokenizer = TRAINED[normalizer]
    token_ids = [tokenizer.bos_id, *tokenizer.encode("the wing"), tokenizer.eos_id]
    assert tokenizer.decode(token_ids) == "the wing"
    assert tokenizer.decode(np.array(token_ids, dtype=np.int32)) == "the wing"


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_marks_written_in_a_text_are_not_the_marks(normalizer):
    tokenizer = TRAINED[normalizer]
    token_ids = tokenizer.encode("<s> a </s>")
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(token_ids)
    assert tokenizer.decode(token_ids) == "<s> a </s>"


# ---------------------------------------------------------------- the same ids as SentencePiece


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_ids_are_sentencepieces_ids(normalizer):
    tokenizer = TRAINED[normalizer]

    @examples
    @given(text_without_marker)
    def check(text):
        assert tokenizer.encode(text) == tokenizer._processor.encode(text)

    check()


@pytest.mark.parametrize(
    ("normalizer", "separator"),
    # without folding a tab is no space: the list would be one word
    [
        (name, end)
        for name in NORMALIZERS
        for end in ("\n", "\t", "\r\n", " ", "\n\n \n")
        if (name, end) != ("identity", "\t")
    ],
)
def test_ids_of_a_long_list_of_words_are_sentencepieces_ids(normalizer, separator):
    tokenizer = TRAINED[normalizer]
    text = separator.join(["library", "angle", "wing", "books", "cholesterol"] * 100)
    assert tokenizer.encode(text) == tokenizer._processor.encode(text)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_empty_text_has_no_ids(normalizer):
    assert TRAINED[normalizer].encode("") == []


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_ids_of_real_documents_are_sentencepieces_ids(normalizer):
    if not NFCORPUS.is_dir():
        pytest.skip(f"{NFCORPUS} is not here; set LMR_DATA")
    with (NFCORPUS / "corpus.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][::8]
    texts = [f"{row['title']}\n{row['text']}" for row in rows]
    tokenizer = train(normalizer, texts=texts[:150], vocab_size=2000)
    assert len(texts) == 455
    assert list(map(tokenizer.encode, texts)) == tokenizer._processor.encode(texts)


def test_ids_do_not_depend_on_what_was_encoded_before():
    fresh = Tokenizer(EXACT.model)
    assert fresh.encode("Where are the books?") == EXACT.encode("Where are the books?")
    assert fresh.encode("Where are the books?") == fresh.encode("Where are the books?")


def test_cache_that_overflows_gives_the_same_ids(monkeypatch):
    monkeypatch.setattr("lm_retrieval.tokenizer._MAX_CACHED_WORDS", 3)
    fresh = Tokenizer(EXACT.model)
    assert [fresh.encode(text) for text in TEXTS] == [EXACT.encode(text) for text in TEXTS]
    assert len(fresh._words) <= 3


def test_batch_gives_the_ids_of_each_text():
    batch = EXACT.encode_batch(["the wing", "", "books"])
    assert [ids.tolist() for ids in batch] == [EXACT.encode("the wing"), EXACT.encode(""), EXACT.encode("books")]
    assert {ids.dtype for ids in batch} == {np.dtype(np.int32)}


# ---------------------------------------------------------------- pieces


def test_pieces_show_spaces_and_concatenate_to_the_text():
    pieces = EXACT.pieces("the books")
    assert "".join(pieces) == "\u2581the\u2581books"
    assert [EXACT.decode([token_id]) for token_id in EXACT.encode("the books")] == [
        piece.replace("\u2581", "", 1) if place == 0 or piece[0] == "\u2581" else piece
        for place, piece in enumerate(pieces)
    ]


def test_frequent_words_are_one_piece_and_unknown_characters_are_bytes():
    assert EXACT.pieces("the") == ["\u2581the"]
    assert EXACT.pieces("a\u00df") == ["\u2581a", "<0xC3>", "<0x9F>"]


def test_character_pieces_are_single_characters():
    assert CHARACTERS.pieces("the wing") == ["\u2581", "t", "h", "e", "\u2581", "w", "i", "n", "g"]


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_training_twice_gives_the_same_bytes(kind, normalizer):
    first, second = train(normalizer, kind=kind), train(normalizer, kind=kind)
    assert first.model == second.model
    assert first.fingerprint == second.fingerprint


def test_training_on_a_sample_gives_the_same_bytes_and_another_model_than_all_text():
    config = TokenizerConfig(vocab_size=330, max_training_bytes=400)
    texts = [f"{text} number {number}" for number, text in enumerate(TEXTS)]
    sampled = Tokenizer.train(iter(texts), config)
    assert sampled.model == Tokenizer.train(texts, config).model
    assert sampled.model != Tokenizer.train(texts, TokenizerConfig(vocab_size=330)).model


def test_vocabulary_has_the_size_asked_for():
    assert EXACT.vocab_size == 400


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_vocabulary_shrinks_to_what_the_text_supports(kind, normalizer):
    tokenizer = train(normalizer, kind=kind, texts=["hello world"], vocab_size=8000)
    assert 256 + 3 + len(set("hello world")) - 1 <= tokenizer.vocab_size < 300
    assert tokenizer.decode(tokenizer.encode("hello world, äöü")) == "hello world, äöü"
    same = train(normalizer, kind=kind, texts=["hello world"], vocab_size=tokenizer.vocab_size)
    assert same.vocab_size == tokenizer.vocab_size
    assert same.encode("hello world") == tokenizer.encode("hello world")


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_vocabulary_too_small_for_the_characters_is_explained(kind):
    with pytest.raises(TokenizerError, match=r"vocab_size 100 is too small for this text") as caught:
        train(kind=kind, vocab_size=100)
    assert "choose a larger one" in str(caught.value)
    assert "INTERNAL" not in str(caught.value)


def test_vocabulary_too_small_names_the_size_that_is_needed():
    with pytest.raises(TokenizerError, match=r"\d+") as caught:
        train(vocab_size=100)
    needed = max(map(int, re.findall(r"\d+", str(caught.value))))
    assert train(vocab_size=needed).vocab_size == needed


@pytest.mark.parametrize("texts", [[], [""], [" \n\t", "\0"]])
def test_training_without_text_is_an_error(texts):
    with pytest.raises(TokenizerError, match="no text to train a tokenizer on"):
        Tokenizer.train(texts)


def test_lines_longer_than_sentencepiece_takes_are_learned_too():
    tokenizer = train(texts=["zebra quagga " * 2000], vocab_size=290)
    assert tokenizer.pieces("zebra") == ["\u2581zebra"]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_saved_tokenizer_loads_as_the_same(tmp_path, normalizer):
    tokenizer = TRAINED[normalizer]
    path = tmp_path / "folder" / "tokenizer.model"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert path.read_bytes() == tokenizer.model == loaded.model
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.lossless) == (tokenizer.vocab_size, tokenizer.lossless)
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_fingerprints_tell_tokenizers_apart():
    fingerprints = {tokenizer.fingerprint for tokenizer in (*TRAINED.values(), CHARACTERS)}
    assert len(fingerprints) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", fingerprint) for fingerprint in fingerprints)


@pytest.mark.parametrize("content", [b"", b"junk", bytes(100), EXACT.model[: len(EXACT.model) // 2]])
def test_file_that_is_no_model_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=re.escape(f"{path}: not a SentencePiece model; train one with")):
        Tokenizer.load(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path / 'none'}: no such file")):
        Tokenizer.load(tmp_path / "none")
