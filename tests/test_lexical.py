"""Words, BM25, LSI, fusion and snippets: against formulas written out here and against scikit-learn."""

import json
import math
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from lm_retrieval.corpus.words import STOP_WORDS, Analyzer
from lm_retrieval.errors import IndexFormatError
from lm_retrieval.index.fusion import fusion_depth, interpolated, min_max, reciprocal_rank, scaled, weighted_sum
from lm_retrieval.index.lexical import LexicalIndex, top_rows
from lm_retrieval.index.lsi import LsiIndex
from lm_retrieval.index.snippets import best_chunk, cut_snippet
from lm_retrieval.records import Span

CORPUS = [
    "Reading a file: open the file and read its lines one by one.",
    "Sorting lists of numbers with a key function",
    "",
    "A list is sorted in place; sorted() returns a new list, and lists may be nested lists of lists",
    "Write bytes to a socket, then close the socket.",
    "the and of is",
    "Files are closed when the block ends; a closed file cannot be read",
    "Regular expressions match text; compile a pattern to match it often",
    "Threads share memory and locks protect it",
    "Lists, files, sockets and threads: numbers of lines read or written",
]
QUERIES = [
    "read a file",
    "sort list",
    "closing sockets",
    "match the pattern in lines",
    "numbers numbers numbers file",
    "zebra",
    "the of and",
    "",
]


# ---------------------------------------------------------------- words


def test_terms_are_lower_case_stems_in_order_without_stop_words():
    terms = Analyzer().terms("The Files were CLOSED; closing 42 files, is it? x re_match naïve")
    assert terms == ["file", "close", "close", "42", "file", "re_match", "naïv"]


@pytest.mark.parametrize("text", ["", "  \n", "the of and", "a b c", "!?…"])
def test_texts_of_stop_words_letters_and_signs_have_no_terms(text):
    assert Analyzer().terms(text) == []


def test_every_form_of_a_word_has_the_same_term():
    analyzer = Analyzer()
    assert len({tuple(analyzer.terms(word)) for word in ("connect", "Connected", "connecting", "CONNECTIONS")}) == 1


def test_a_stop_word_is_no_term_in_any_case():
    analyzer = Analyzer()
    for word in STOP_WORDS:
        assert analyzer.terms(word) == analyzer.terms(word.upper()) == []


def test_matches_are_the_places_of_all_words_with_one_of_the_terms():
    analyzer, text = Analyzer(), "Files: open a file, close the FILE; profile"
    spans = analyzer.matches(text, frozenset(analyzer.terms("file open")))
    assert [text[span.start : span.end] for span in spans] == ["Files", "open", "file", "FILE"]
    assert analyzer.matches(text, frozenset()) == []
    assert analyzer.matches(text, frozenset({"the"})) == []


@settings(deadline=None)
@given(st.text(alphabet="abcdeinst öß日.\n-_'", max_size=60))
def test_the_words_that_match_the_terms_of_their_own_text_give_those_terms(text):
    analyzer = Analyzer()
    spans = analyzer.matches(text, frozenset(analyzer.terms(text)))
    assert [term for span in spans for term in analyzer.terms(text[span.start : span.end])] == analyzer.terms(text)


# ---------------------------------------------------------------- BM25


def bm25(texts: list[str], query: str) -> list[float]:
    """Σ idf · tf / (tf + k1 (1 - b + b · length / average)), as Lucene writes it since version 8."""
    analyzer = Analyzer()
    documents = [Counter(analyzer.terms(text)) for text in texts]
    average = sum(document.total() for document in documents) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in analyzer.terms(query):
            found = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - found + 0.5) / (found + 0.5))
            norm = 1.2 * (1 - 0.75 + 0.75 * document.total() / average)
            score += idf * document[term] / (document[term] + norm)
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", QUERIES)
def test_a_text_scores_as_if_it_were_one_of_the_documents(query, tmp_path):
    built = LexicalIndex.build(CORPUS)
    built.save(tmp_path)
    for index in (built, LexicalIndex.open(tmp_path)):
        # exactly: equal texts must stay equal
        assert [index.score_of(query, text) for text in CORPUS] == index.scores(query).tolist()
    assert built.score_of(query, "words of no document") == 0
    assert math.isfinite(LexicalIndex.build([]).score_of(query, "file"))


def test_an_index_of_before_has_no_mean_length_and_is_searched_all_the_same(tmp_path):
    LexicalIndex.build(CORPUS).save(tmp_path)
    facts = json.loads((tmp_path / "size.json").read_text())
    del facts["mean_length"]
    (tmp_path / "size.json").write_text(json.dumps(facts))
    index = LexicalIndex.open(tmp_path)
    assert index.search("file", 3)[0].tolist() == LexicalIndex.build(CORPUS).search("file", 3)[0].tolist()
    assert math.isnan(index.score_of("file", "file"))


@pytest.mark.parametrize("query", QUERIES)
def test_scores_are_those_of_the_formula(query):
    found = LexicalIndex.build(CORPUS).scores(query)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, bm25(CORPUS, query), rtol=1e-5, atol=1e-6)


def test_a_score_worked_out_by_hand():
    # two documents of two and four terms; "file" occurs in one of them, twice
    index = LexicalIndex.build(["red blue", "file file red green"])
    idf = math.log(1 + 1.5 / 1.5)
    expected = idf * 2 / (2 + 1.2 * (0.25 + 0.75 * 4 / 3))
    assert index.scores("files").tolist() == pytest.approx([0.0, expected])


@pytest.mark.parametrize("query", QUERIES)
def test_a_saved_index_gives_equal_scores(tmp_path, query):
    index = LexicalIndex.build(CORPUS)
    index.save(tmp_path / "bm25")
    opened = LexicalIndex.open(tmp_path / "bm25")
    assert len(opened) == len(index) == len(CORPUS)
    np.testing.assert_array_equal(opened.scores(query), index.scores(query))


def bm25s_scores(texts: list[str], query: str) -> np.ndarray:
    """What the library gives for the same terms; it knows no query without terms and no corpus without any."""
    analyzer = Analyzer()
    documents, terms = [analyzer.terms(text) for text in texts], analyzer.terms(query)
    known = {term for document in documents for term in document}
    if not known.intersection(terms):
        return np.zeros(len(texts), np.float32)
    model = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    model.index(documents, show_progress=False, create_empty_token=False)
    return model.get_scores([term for term in terms if term in known])


def assert_bm25s(texts: list[str], queries: list[str], folder: Path) -> None:
    built = LexicalIndex.build(iter(texts))
    built.save(folder)
    opened = LexicalIndex.open(folder)
    assert len(built) == len(opened) == len(texts)
    for query in queries:
        expected, found = bm25s_scores(texts, query), built.scores(query)
        assert (found.dtype, found.shape) == (np.float32, (len(texts),))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(opened.scores(query), found)
        for first, second in zip(opened.search(query, 3), built.search(query, 3), strict=True):
            np.testing.assert_array_equal(first, second)


FOREIGN = [
    "naïve café naïve",
    "日本語 テキスト 日本語",
    "δοκιμή κειμένου δοκιμή",
    "",
    "ß straße STRASSE",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 words",
    "e\u0301tude étude",
    "zebra \ud800 lone",
    "a\x00b null\x00null",
]


@pytest.mark.parametrize("texts", [CORPUS, FOREIGN, ["file"], ["", "", "file"], ["", "the"], [], ["one two"] * 5])
def test_scores_before_saving_and_after_opening_are_those_of_bm25s(tmp_path: Path, texts: list[str]) -> None:
    repeated = [
        "file file read file",
        "zebra zebra unknownterm naïve unknownterm",
        "日本語 日本語 straße 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 δοκιμή",
    ]
    assert_bm25s(texts, [*QUERIES, *repeated, *texts], tmp_path / "bm25")


WORDY = st.lists(
    st.sampled_from(
        [*"ab0é日", "file", "files", "Read", "the", "zebra", "ÅNGSTRÖM", "𝔘𝔫𝔦", "x" * 40, "0file", "éa", "zz"]
    ),
    max_size=12,
).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(WORDY | st.text(max_size=20), max_size=12), query=WORDY | st.text(max_size=20))
def test_scores_are_those_of_bm25s_whatever_the_text(texts: list[str], query: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert_bm25s(texts, [query, " ".join(texts)], Path(folder) / "bm25")


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_postings_sorted_in_many_pieces_are_those_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("lm_retrieval.index.lexical._SORTED_AT_ONCE", size)
    assert_bm25s(CORPUS, QUERIES, tmp_path / "bm25")
    assert_bm25s(["one two"] * 5 + ["two", "three"], ["one", "two three", "three three"], tmp_path / "other")


def test_a_term_is_found_only_as_a_whole_and_wherever_it_stands_in_the_list(tmp_path: Path) -> None:
    words = [f"w{number:03}" for number in range(300)]
    LexicalIndex.build(words).save(tmp_path / "bm25")
    opened = LexicalIndex.open(tmp_path / "bm25")
    for row, word in enumerate(words):
        assert opened.search(word, 9)[0].tolist() == [row]
    for absent in ("a00", "w", "w0", "w00", "w0000", "w1490", "w299x", "w300", "zz", "ww"):
        assert not opened.scores(absent).any()


def test_an_index_is_opened_without_reading_it_and_stays_readable_when_the_folder_is_replaced(tmp_path: Path) -> None:
    LexicalIndex.build(CORPUS).save(tmp_path / "bm25")
    opened = LexicalIndex.open(tmp_path / "bm25")
    assert isinstance(opened._rows, np.memmap)
    expected = LexicalIndex.build(CORPUS).scores("read files")
    (tmp_path / "bm25").rename(tmp_path / "old")
    LexicalIndex.build(["other text"]).save(tmp_path / "bm25")
    shutil.rmtree(tmp_path / "old")
    np.testing.assert_array_equal(opened.scores("read files"), expected)


def test_an_index_saved_over_another_one_is_the_new_one(tmp_path: Path) -> None:
    LexicalIndex.build(CORPUS).save(tmp_path / "bm25")
    LexicalIndex.build(["zebra", "file zebra"]).save(tmp_path / "bm25")
    opened = LexicalIndex.open(tmp_path / "bm25")
    assert len(opened) == 2
    assert opened.search("file", 5)[0].tolist() == [1]
    assert not opened.scores("sorted lists").any()


def test_the_best_documents_come_first_and_others_not_at_all():
    rows, scores = LexicalIndex.build(CORPUS).search("read files", 10)
    expected = np.array(bm25(CORPUS, "read files"))
    assert set(rows.tolist()) == set(np.flatnonzero(expected > 0).tolist())
    np.testing.assert_allclose(scores, np.sort(expected[expected > 0])[::-1], rtol=1e-5)
    np.testing.assert_allclose(scores, expected[rows], rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_no_more_than_k_documents_are_found(k):
    index = LexicalIndex.build(CORPUS)
    everything, _ = index.search("list", 10)
    assert len(everything) == 3
    assert index.search("list", k)[0].tolist() == everything[:k].tolist()


def test_texts_without_terms_keep_their_row_and_are_never_found():
    index = LexicalIndex.build(["", "file", "the of", "file"])
    assert len(index) == 4
    assert index.search("file", 10)[0].tolist() == [1, 3]


@pytest.mark.parametrize("texts", [[], [""], ["", "the and", "?"]])
def test_a_corpus_without_terms_finds_nothing_also_after_saving(tmp_path, texts):
    LexicalIndex.build(texts).save(tmp_path / "bm25")
    for index in (LexicalIndex.build(texts), LexicalIndex.open(tmp_path / "bm25")):
        assert len(index) == len(texts)
        assert index.scores("file").tolist() == [0.0] * len(texts)
        assert index.search("file", 5)[0].tolist() == []


def test_one_document_is_found_by_its_words():
    index = LexicalIndex.build(["a single file"])
    assert index.search("files", 5)[0].tolist() == [0]
    assert index.scores("files").tolist() == pytest.approx(bm25(["a single file"], "files"))


def test_a_missing_or_damaged_index_is_an_error(tmp_path):
    with pytest.raises(IndexFormatError, match="damaged BM25 index"):
        LexicalIndex.open(tmp_path / "absent")
    folder = tmp_path / "bm25"
    LexicalIndex.build(CORPUS).save(folder)
    files = list(folder.iterdir())
    assert len(files) == 5
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 3])
        with pytest.raises(IndexFormatError, match="damaged BM25 index"):
            LexicalIndex.open(folder)
        path.write_bytes(content)
    assert len(LexicalIndex.open(folder)) == len(CORPUS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("size.json", b"null"),
        ("size.json", b"{}"),
        ("size.json", b""),
        ("starts.npy", b""),
        ("starts.npy", np.array(3)),
        ("starts.npy", np.zeros(0, np.int64)),
        ("rows.npy", np.zeros(3, np.int32)),
        ("rows.npy", b"PK junk"),
        ("weights.npy", np.zeros((2, 2), np.float32)),
        ("terms.arrow", b"ARROW1"),
    ],
)
def test_a_part_that_does_not_fit_is_an_error(tmp_path: Path, name: str, content: bytes | np.ndarray) -> None:
    folder = tmp_path / "bm25"
    LexicalIndex.build(CORPUS).save(folder)
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        np.save(folder / name, content)
    with pytest.raises(IndexFormatError, match="run `lmr embed` again"):
        LexicalIndex.open(folder).scores("read files")


@pytest.mark.parametrize("name", ["size.json", "terms.arrow", "starts.npy", "rows.npy", "weights.npy"])
def test_an_index_with_a_part_missing_or_cut_anywhere_is_an_error(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bm25"
    LexicalIndex.build(CORPUS).save(folder)
    content = (folder / name).read_bytes()
    for size in range(0, len(content), max(1, len(content) // 40)):
        (folder / name).write_bytes(content[:size])
        with pytest.raises(IndexFormatError, match="BM25 index"):
            LexicalIndex.open(folder)
    (folder / name).unlink()
    with pytest.raises(IndexFormatError, match="damaged BM25 index"):
        LexicalIndex.open(folder)


# ---------------------------------------------------------------- top rows


@pytest.mark.parametrize(
    ("scores", "k", "expected"),
    [
        ([0.0, 2.0, 1.0, 3.0], 2, [3, 1]),
        ([1.0, 2.0, 1.0, 2.0, 1.0], 3, [1, 3, 0]),
        ([1.0, 2.0, 1.0, 2.0, 1.0], 9, [1, 3, 0, 2, 4]),
        ([5.0] * 6, 4, [0, 1, 2, 3]),
        ([0.0, -1.0, 0.0], 3, []),
        ([0.0, -1.0, 0.5], 3, [2]),
        ([], 3, []),
    ],
)
def test_top_rows_are_the_largest_positive_scores_with_ties_in_row_order(scores, k, expected):
    rows, values = top_rows(np.array(scores, np.float32), k)
    assert rows.tolist() == expected
    assert values.tolist() == [scores[row] for row in expected]


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), max_size=40), st.integers(1, 45))
def test_top_rows_equal_a_sort_of_everything(scores, k):
    expected = sorted((row for row, score in enumerate(scores) if score > 0), key=lambda row: (-scores[row], row))[:k]
    assert top_rows(np.array(scores, np.float32), k)[0].tolist() == expected


# ---------------------------------------------------------------- LSI


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length; a row of rounding errors becomes zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norms > 1e-9, vectors / np.maximum(norms, 1e-9), 0)


@pytest.mark.parametrize("dim", [1, 3, 6])
def test_lsi_equals_scikit_learns_tfidf_and_truncated_svd(dim):
    vectorizer = TfidfVectorizer(analyzer=Analyzer().terms, sublinear_tf=True)
    weights = vectorizer.fit_transform(CORPUS)
    svd = TruncatedSVD(dim, algorithm="arpack", random_state=0).fit(weights)
    documents = normalize(svd.transform(weights))
    index = LsiIndex(CORPUS, dim=dim)
    np.testing.assert_allclose(index.vectors @ index.vectors.T, documents @ documents.T, atol=1e-4)
    for query in QUERIES:
        cosines = documents @ normalize(svd.transform(vectorizer.transform([query])))[0]
        rows, scores = index.search(query, len(CORPUS))
        assert sorted(rows.tolist()) == list(range(len(CORPUS)))
        np.testing.assert_allclose(scores, cosines[rows], atol=1e-4)
        np.testing.assert_allclose(scores, np.sort(cosines)[::-1], atol=1e-4)


def test_lsi_finds_the_document_that_a_query_repeats():
    index = LsiIndex(CORPUS)
    for row, text in enumerate(CORPUS):
        if Analyzer().terms(text):
            rows, scores = index.search(text, 1)
            assert rows.tolist() == [row]
            assert scores[0] == pytest.approx(1.0, abs=1e-5)


def test_lsi_relates_words_that_occur_together():
    texts = ["car engine wheel", "automobile engine wheel", "car wheel", "automobile engine"]
    texts += ["poem verse rhyme", "verse rhyme", "poem rhyme"]
    rows, scores = LsiIndex(texts, dim=2).search("car", 7)
    assert set(rows[:4].tolist()) == {0, 1, 2, 3}
    assert scores[3] > 0.9
    assert abs(scores[4]) < 0.1


def test_lsi_is_the_same_in_every_run():
    # directions of equal weight may change places, which no cosine shows
    first, second = LsiIndex(CORPUS).vectors, LsiIndex(CORPUS).vectors
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-6)


@pytest.mark.parametrize("texts", [[], [""], ["file"], ["", "the"], ["file", "file"], ["read file", ""]])
def test_tiny_corpora_have_finite_scores(texts):
    index = LsiIndex(texts)
    rows, scores = index.search("file", 5)
    assert len(rows) == len(texts)
    assert np.isfinite(scores).all()
    assert index.search("zebra", 5)[1].tolist() == pytest.approx([0.0] * len(texts))


# ---------------------------------------------------------------- fusion


def test_min_max_moves_scores_to_zero_to_one():
    assert min_max({"a": 3.0, "b": -1.0, "c": 1.0}) == {"a": 1.0, "b": 0.0, "c": 0.5}
    assert min_max({"a": 7.0, "b": 7.0}) == {"a": 1.0, "b": 1.0}
    assert min_max({}) == {}
    assert min_max({"a": 4.0, "b": 1.0}, low=0.0) == {"a": 1.0, "b": 0.25}
    assert min_max({"a": 7.0, "b": 7.0}, low=0.0) == {"a": 1.0, "b": 1.0}


def test_of_few_documents_not_nearly_all_are_joined():
    assert [fusion_depth(count) for count in (10, 400, 600, 1200, 10**6)] == [100, 100, 150, 300, 300]


def test_a_document_that_bm25_finds_never_counts_as_if_it_had_not_been_found():
    words, meaning = scaled({"a": 4.0, "b": 3.0}, {"a": 0.9, "c": 0.1})
    assert words == {"a": 1.0, "b": 0.75}
    assert meaning == {"a": 1.0, "c": 0.0}
    assert interpolated({"a": 4.0, "b": 3.0}, {"a": -9.0, "b": -5.0}, weight=0.25) == {"a": 0.75, "b": 0.25}


def test_the_weighted_sum_scales_both_sides_and_counts_zero_for_a_missing_document():
    lexical = {"a": 10.0, "b": 5.0, "c": 1.0}
    dense = {"b": 0.9, "d": 0.5, "a": 0.7}
    found = weighted_sum(lexical, dense, dense_weight=0.3)
    assert found == pytest.approx({"a": 0.7 * 1 + 0.3 * 0.5, "b": 0.7 * 0.5 + 0.3 * 1, "c": 0.7 * 0.1, "d": 0.0})


def test_the_weight_goes_from_one_ranking_to_the_other():
    lexical, dense = {"a": 2.0, "b": 1.0}, {"b": 2.0, "a": 1.0}
    assert weighted_sum(lexical, dense, dense_weight=0.0) == min_max(lexical, low=0.0)
    assert weighted_sum(lexical, dense, dense_weight=1.0) == min_max(dense)
    assert weighted_sum({}, dense, dense_weight=0.25) == {"b": 0.25, "a": 0.0}
    assert weighted_sum({}, {}, dense_weight=0.5) == {}


def test_reciprocal_ranks_add_up():
    lexical = {"b": 1.0, "a": 9.0, "c": 0.5}
    dense = {"c": 0.3, "a": 0.1}
    found = reciprocal_rank(lexical, dense)
    assert found == pytest.approx({"a": 1 / 61 + 1 / 62, "b": 1 / 62, "c": 1 / 63 + 1 / 61})
    assert reciprocal_rank({"a": 1.0}, k=9) == {"a": 0.1}
    assert reciprocal_rank({}, {}) == {}


def test_fusion_leaves_its_inputs_alone():
    lexical, dense = {"a": 2.0}, {"b": 1.0}
    weighted_sum(lexical, dense, dense_weight=0.5)
    reciprocal_rank(lexical, dense)
    assert (lexical, dense) == ({"a": 2.0}, {"b": 1.0})


# ---------------------------------------------------------------- snippets

ANALYZER = Analyzer()
FILLER = "Nothing of interest happens in this long sentence about clouds and rain. "


def snippet_of(content: str, query: str, passage: Span | None = None, **settings) -> tuple[str, list[str]]:
    """The snippet and the words it highlights."""
    terms = frozenset(ANALYZER.terms(query))
    whole = passage or Span(0, len(content))
    snippet, highlights = cut_snippet(content, whole, terms=terms, analyzer=ANALYZER, **settings)
    return snippet, [snippet[span.start : span.end] for span in highlights]


def test_a_short_text_is_its_own_snippet_with_its_matching_words_marked():
    snippet, words = snippet_of("Read the file,\n  then close files.", "closing a file")
    assert snippet == "Read the file, then close files."
    assert words == ["file", "close", "files"]


@pytest.mark.parametrize("before", [0, 1, 5, 20])
@pytest.mark.parametrize("after", [0, 1, 5, 20])
def test_the_snippet_of_a_long_text_is_where_the_words_are(before, after):
    content = FILLER * before + "Sockets are closed by calling close. " + FILLER * after
    snippet, words = snippet_of(content, "close a socket")
    assert words == ["Sockets", "closed", "close"]
    assert len(snippet) <= 240 + len("… ") + len(" …")
    assert snippet.startswith("… ") == (before > 0)
    assert snippet.endswith(" …") == (after >= 5)


def test_the_snippet_is_taken_where_most_words_are():
    content = "A socket. " + FILLER * 6 + "Close the socket: sockets must be closed. " + FILLER * 6
    snippet, words = snippet_of(content, "close socket")
    assert words == ["Close", "socket", "sockets", "closed"]
    assert snippet.startswith("… Close the socket")


def test_a_snippet_without_matching_words_is_the_beginning():
    snippet, words = snippet_of(FILLER * 9, "zebra")
    assert snippet.startswith(FILLER[:60])
    assert snippet.endswith(" …")
    assert words == []


def test_a_snippet_stays_within_its_passage():
    content = "socket one. " + FILLER + "socket two. " + FILLER + "socket three."
    start = content.index("socket two")
    snippet, words = snippet_of(content, "socket", Span(start, start + 20))
    assert snippet.removesuffix(" …") == " ".join(content[start : start + 20].split())
    assert words == ["socket"]


def test_a_snippet_of_nothing_is_empty():
    assert snippet_of("", "file") == ("", [])


WORDS = ["file", "socket", "rain", "clouds", "x" * 30]
SEPARATORS = [" ", ". ", "\n", "; ", "  ", ";", "/", "="]


@settings(deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(SEPARATORS)), min_size=1, max_size=60),
    width=st.sampled_from([80, 240]),
)
@example(parts=[("x" * 30, "\n"), ("x" * 30, " "), ("socket", " "), ("socket", " "), ("file", " ")], width=80)
def test_a_text_with_a_matching_word_has_a_snippet_with_a_marked_word(parts, width):
    content = "".join(word + separator for word, separator in parts)
    snippet, words = snippet_of(content, "file", width=width)
    assert set(words) <= {"file"}
    assert bool(words) == ("file" in content)
    inner = snippet.removeprefix("… ").removesuffix(" …")
    assert inner in " ".join(content.split())  # a piece of the text, white space apart
    assert len(inner) <= width


def test_a_matching_word_in_a_long_run_without_spaces_is_in_the_snippet():
    content = "word " + "/".join(["path"] * 100) + "/file/" + "/".join(["path"] * 100)
    assert snippet_of(content, "file")[1] == ["file"]


def test_a_matching_word_in_front_of_a_long_run_without_spaces_is_in_the_snippet():
    content = FILLER * 2 + "Some rain on the hills beyond the sea file/" + "p/" * 300
    assert snippet_of(content, "file", width=80)[1] == ["file"]


def test_the_best_chunk_has_the_most_distinct_terms():
    content = "file file file. read a socket file. socket"
    chunks = [Span(0, 15), Span(16, 35), Span(36, 42)]
    terms = frozenset(ANALYZER.terms("file socket"))
    assert best_chunk(content, chunks, terms=terms, analyzer=ANALYZER) == chunks[1]
    assert best_chunk(content, chunks, terms=frozenset({"zebra"}), analyzer=ANALYZER) == chunks[0]
    assert best_chunk(content, chunks[::2], terms=terms, analyzer=ANALYZER) == chunks[0]


def test_without_chunks_the_best_one_is_the_beginning():
    assert best_chunk("x" * 1000, [], terms=frozenset(), analyzer=ANALYZER) == Span(0, 240)
    assert best_chunk("short", [], terms=frozenset(), analyzer=ANALYZER) == Span(0, 5)


@pytest.mark.parametrize("most", [1, 7, 60, 10_000])
def test_bounded_memory_writes_the_same_files(tmp_path, monkeypatch, most):
    texts = [*CORPUS, *(f"{text} again number{place}" for place, text in enumerate(CORPUS)), "", *CORPUS]
    LexicalIndex.build(texts).save(tmp_path / "whole")
    monkeypatch.setattr("lm_retrieval.index.lexical._SORTED_AT_ONCE", most)
    LexicalIndex.write(iter(texts), tmp_path / "bounded", memory_bytes=1)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "bounded" / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(list((tmp_path / "bounded").iterdir())) == len(list((tmp_path / "whole").iterdir()))
