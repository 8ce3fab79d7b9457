"""Comparing retrieval systems on a judged corpus: BM25, LSI-256, and each encoder alone and with BM25."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_retrieval.checkpoint import read_config
from lm_retrieval.corpus import Corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError, CorpusError
from lm_retrieval.evaluation.evaluator import DEFAULT_MEASURES, Evaluation, evaluate
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.index.lsi import LsiIndex
from lm_retrieval.progress import progress
from lm_retrieval.records import Query, Run
from lm_retrieval.runtime import Precision
from lm_retrieval.search import Mode, Rerank, Searcher

DEPTH = 1000


@dataclass(frozen=True)
class SystemResult:
    """One row of the table.

    Attributes:
        name: `bm25`, `lsi-256`, `dense:<encoder>`, `hybrid:<encoder>` or `hybrid+lm:<encoder>`.
        run: query_id → doc_id → score, at most 1,000 documents each.
    """

    name: str
    evaluation: Evaluation
    run: Run


@dataclass(frozen=True)
class Comparison:
    """All systems on one split of one corpus.

    Attributes:
        judgments_without_document: judgments left out because the corpus has no such document.
    """

    corpus: str
    split: str
    documents: int
    queries: int
    judgments_without_document: int
    systems: tuple[SystemResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON: `{"corpus", "split", "queries", "systems": [{"name", "measures": {…}}]}` and counts."""
        return {
            "corpus": self.corpus,
            "split": self.split,
            "documents": self.documents,
            "queries": self.queries,
            "judgments_without_document": self.judgments_without_document,
            "systems": [
                {
                    "name": system.name,
                    "measures": system.evaluation.measures,
                    "judged_at_10": system.evaluation.judged_at_10,
                    "queries_without_results": system.evaluation.queries_without_results,
                }
                for system in self.systems
            ],
        }


def compare_systems(
    corpus: Corpus,
    *,
    split: str,
    encoders: Sequence[tuple[str, Encoder]] = (),
    measures: Sequence[str] = DEFAULT_MEASURES,
    rerank: bool = False,
) -> Comparison:
    """Ranks every judged query with every system and scores the runs.

    Args:
        corpus: a BEIR folder.
        split: which judgments.
        encoders: name and encoder of each pair of dense and hybrid rows; unfitted ones are fitted on the corpus.
        measures: ir-measures names.
        rerank: add a row with the hybrid ranking reordered by the encoder's language model.

    Raises:
        CorpusError: no queries or judgments, or judged queries without a text.
        EvaluationError: see `evaluate`.
    """
    names = [name for name, _ in encoders]
    if len(set(names)) < len(names):
        raise ConfigError(f"two encoders have one name ({', '.join(names)}); rename a checkpoint folder")
    documents = list(corpus.documents())
    known = {document.doc_id for document in documents}
    judged = corpus.qrels(split)
    qrels = {
        query_id: {doc_id: grade for doc_id, grade in grades.items() if doc_id in known}
        for query_id, grades in judged.items()
    }
    dropped = sum(map(len, judged.values())) - sum(map(len, qrels.values()))
    texts = {query.query_id: query for query in corpus.queries()}
    missing = [query_id for query_id in qrels if query_id not in texts]
    if missing:
        raise CorpusError(f"{corpus.path}: query '{missing[0]}' is judged in '{split}' but not in queries.jsonl")
    queries = [texts[query_id] for query_id in qrels]
    doc_ids = [document.doc_id for document in documents]
    contents = [document.content for document in documents]
    results = []
    for name, run in _runs(corpus, doc_ids, contents, queries, encoders, rerank):
        results.append(SystemResult(name, evaluate(qrels, run, measures=measures), run))
    return Comparison(
        corpus=corpus.name,
        split=split,
        documents=len(documents),
        queries=results[0].evaluation.queries,
        judgments_without_document=dropped,
        systems=tuple(results),
    )


def encoder_variants(
    checkpoint: Path, *, postprocesses: Sequence[str] = (), device: str = "auto", dtype: Precision = "float32"
) -> list[tuple[str, Encoder]]:
    """The encoder of a checkpoint as configured, or once for each of `none`, `center`, `whiten` that is asked for.

    Names tell them apart: `lstm`, `lstm+center`, `lstm+whiten`.

    Raises:
        CheckpointError: the folder is missing or damaged.
    """
    if not postprocesses:
        encoder = Encoder.load(checkpoint, device=device, dtype=dtype)
        return [(encoder.name, encoder)]
    stored = read_config(checkpoint).encoder
    variants = []
    for postprocess in postprocesses:
        config = stored.model_copy(update={"postprocess": postprocess})
        encoder = Encoder.load(checkpoint, device=device, dtype=dtype, config=config)
        variants.append((f"{encoder.name}+{postprocess}" if postprocess != "none" else encoder.name, encoder))
    return variants


def _runs(
    corpus: Corpus,
    doc_ids: list[str],
    contents: list[str],
    queries: list[Query],
    encoders: Sequence[tuple[str, Encoder]],
    rerank: bool,
) -> Iterator[tuple[str, Run]]:
    yield "bm25", _ranked("bm25", LexicalIndex.build(contents).search, queries, doc_ids)
    yield "lsi-256", _ranked("lsi-256", LsiIndex(contents).search, queries, doc_ids)
    for name, encoder in encoders:
        with tempfile.TemporaryDirectory(prefix="lmr-evaluate-") as folder:
            index = Path(folder) / "index"
            build_index(corpus, encoder=encoder, output=index)
            searcher = Searcher(index)
            texts = [query.text for query in queries]
            rows: list[tuple[str, Mode, Rerank]] = [("dense", "dense", "none"), ("hybrid", "hybrid", "none")]
            if rerank:
                rows.append(("hybrid+lm", "hybrid", "lm"))
            for label, mode, second_stage in rows:
                rankings = searcher.rank(texts, k=DEPTH, mode=mode, rerank=second_stage)
                run = {query.query_id: ranking for query, ranking in zip(queries, rankings, strict=True)}
                yield f"{label}:{name}", run


def _ranked(name: str, search: Callable[[str, int], Any], queries: list[Query], doc_ids: list[str]) -> Run:
    run: Run = {}
    with progress(f"ranking {name}", total=len(queries)) as advance:
        for query in queries:
            rows, scores = search(query.text, DEPTH)
            run[query.query_id] = {doc_ids[row]: float(score) for row, score in zip(rows, scores, strict=True)}
            advance()
    return run
