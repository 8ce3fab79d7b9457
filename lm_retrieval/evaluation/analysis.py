"""Where systems win and fail: by kind of query, and query by query with the documents at fault."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lm_retrieval.evaluation.evaluator import Evaluation, trec_order
from lm_retrieval.records import Document

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]
_EXAMPLES = 10
_DOCUMENTS = 3
_EQUAL = 1e-9


@dataclass(frozen=True)
class Slice:
    """Queries of one kind.

    Attributes:
        kind: what they are divided by.
        label: which of them.
        means: system → mean of the measure over these queries.
    """

    kind: str
    label: str
    queries: int
    means: dict[str, float]


@dataclass(frozen=True)
class DocumentAtFault:
    """A document that two systems place differently.

    Attributes:
        relevance: its grade; None where it was not judged.
        rank, baseline_rank: from 1; None where the system did not return it.
    """

    doc_id: str
    title: str
    relevance: int | None
    rank: int | None
    baseline_rank: int | None


@dataclass(frozen=True)
class Example:
    """A query on which two systems differ much, and the documents that make the difference."""

    query_id: str
    text: str
    value: float
    baseline_value: float
    documents: tuple[DocumentAtFault, ...]


@dataclass(frozen=True)
class Failures:
    """The queries that a system wins and loses by most against the baseline, the largest difference first."""

    won: tuple[Example, ...]
    lost: tuple[Example, ...]


def slice_queries(
    evaluations: Mapping[str, Evaluation],
    qrels: Qrels,
    measure: str,
    *,
    queries: Mapping[str, str] | None,
    documents: Mapping[str, Document] | None,
) -> tuple[Slice, ...]:
    """Means by length of the query, and by the share of its words that its relevant documents have.

    Words are counted as BM25 sees them: stemmed, without stop words. Empty without the texts of the queries.
    """
    if not queries:
        return ()
    from lm_retrieval.corpus.words import Analyzer

    analyzer = Analyzer()
    scored = [query_id for query_id in next(iter(evaluations.values())).per_query if query_id in queries]
    terms = {query_id: frozenset(analyzer.terms(queries[query_id])) for query_id in scored}
    slices = _by(
        evaluations,
        measure,
        "words in the query",
        {query_id: _length_label(len(terms[query_id])) for query_id in scored},
        _LENGTHS,
    )
    if documents:
        shares = {}
        for query_id in scored:
            share = _shared(terms[query_id], qrels[query_id], documents, analyzer.terms)
            if share is not None:
                shares[query_id] = _share_label(share)
        slices += _by(evaluations, measure, "words shared with the answer", shares, _SHARES)
    return slices


def find_failures(
    baseline: tuple[Evaluation, Run],
    system: tuple[Evaluation, Run],
    qrels: Qrels,
    measure: str,
    *,
    queries: Mapping[str, str] | None = None,
    documents: Mapping[str, Document] | None = None,
) -> Failures:
    """The ten queries most won and the ten most lost."""
    (before, before_run), (after, after_run) = baseline, system
    differences = {
        query_id: values[measure] - before.per_query[query_id][measure] for query_id, values in after.per_query.items()
    }

    def example(query_id: str) -> Example:
        return Example(
            query_id=query_id,
            text=(queries or {}).get(query_id, ""),
            value=after.per_query[query_id][measure],
            baseline_value=before.per_query[query_id][measure],
            documents=_at_fault(
                qrels[query_id],
                trec_order(after_run.get(query_id, {})),
                trec_order(before_run.get(query_id, {})),
                documents or {},
            ),
        )

    ordered = sorted(differences, key=lambda query_id: (-differences[query_id], query_id))
    won = [query_id for query_id in ordered[:_EXAMPLES] if differences[query_id] > _EQUAL]
    lost = [query_id for query_id in ordered[::-1][:_EXAMPLES] if differences[query_id] < -_EQUAL]
    return Failures(tuple(map(example, won)), tuple(map(example, lost)))


def _at_fault(
    grades: Mapping[str, int], ranking: list[str], before: list[str], documents: Mapping[str, Document]
) -> tuple[DocumentAtFault, ...]:
    """Relevant documents that moved most near the top, and what is not relevant but stands first instead."""
    ranks = {doc_id: rank for rank, doc_id in enumerate(ranking, start=1)}
    before_ranks = {doc_id: rank for rank, doc_id in enumerate(before, start=1)}

    def gain(doc_id: str) -> float:
        return abs(1 / ranks.get(doc_id, 10**6) - 1 / before_ranks.get(doc_id, 10**6))

    relevant = sorted(
        (doc_id for doc_id, grade in grades.items() if grade > 0), key=lambda doc_id: (-gain(doc_id), doc_id)
    )
    wrong = [doc_id for doc_id in dict.fromkeys([*ranking[:1], *before[:1]]) if grades.get(doc_id, 0) <= 0]
    chosen = [doc_id for doc_id in relevant[:_DOCUMENTS] if gain(doc_id) > 0] + wrong
    return tuple(
        DocumentAtFault(
            doc_id=doc_id,
            title=_name(documents.get(doc_id)),
            relevance=grades.get(doc_id),
            rank=ranks.get(doc_id),
            baseline_rank=before_ranks.get(doc_id),
        )
        for doc_id in chosen
    )


def _name(document: Document | None) -> str:
    """The title, or how the text begins."""
    if document is None:
        return ""
    return " ".join((document.title or document.text).split())[:100]


def _by(
    evaluations: Mapping[str, Evaluation], measure: str, kind: str, labels: Mapping[str, str], order: tuple[str, ...]
) -> tuple[Slice, ...]:
    groups = {label: [query_id for query_id, own in labels.items() if own == label] for label in order}
    return tuple(
        Slice(
            kind=kind,
            label=label,
            queries=len(members),
            means={
                name: sum(evaluation.per_query[query_id][measure] for query_id in members) / len(members)
                for name, evaluation in evaluations.items()
            },
        )
        for label, members in groups.items()
        if members
    )


_LENGTHS = ("none", "1 to 2", "3 to 5", "6 to 10", "over 10")
_SHARES = ("none", "up to a third", "up to two thirds", "more", "all")


def _length_label(words: int) -> str:
    return next(label for label, most in zip(_LENGTHS, (0, 2, 5, 10, words), strict=True) if words <= most)


def _share_label(share: float) -> str:
    if share in (0, 1):
        return _SHARES[0 if share == 0 else 4]
    return _SHARES[1 if share <= 1 / 3 else 2 if share <= 2 / 3 else 3]


def _shared(
    terms: frozenset[str],
    grades: Mapping[str, int],
    documents: Mapping[str, Document],
    split: Callable[[str], list[str]],
) -> float | None:
    """The largest share of the query's words that a relevant document has; None without words or documents."""
    relevant = [documents[doc_id] for doc_id, grade in grades.items() if grade > 0 and doc_id in documents]
    if not terms or not relevant:
        return None
    return max(len(terms & set(split(document.content))) / len(terms) for document in relevant)
