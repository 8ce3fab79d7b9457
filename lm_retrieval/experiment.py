"""Experiments: rankings of BM25, LSI-256, encoders alone and with BM25, and given runs, on judged collections."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lm_retrieval.artifacts import folder_bytes
from lm_retrieval.checkpoint import read_config
from lm_retrieval.corpus import Corpus, known_item, open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError, CorpusError, EvaluationError, MismatchError
from lm_retrieval.evaluation.evaluator import DEFAULT_MEASURES, check_measures
from lm_retrieval.evaluation.report import CollectionReport, Costs, Report, compare
from lm_retrieval.index.builder import ENCODER_NAME, build_index
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.index.lsi import LsiIndex
from lm_retrieval.index.store import corpus_sha256
from lm_retrieval.progress import progress
from lm_retrieval.records import Document, Qrels, Query, Run
from lm_retrieval.runtime import Precision, peak_memory_bytes, reset_peak_memory
from lm_retrieval.search import Mode, Rerank, Searcher
from lm_retrieval.storage import Location, children

Words = TypeVar("Words", LexicalIndex, LsiIndex)

DEPTH = 1000
_LATENCY_QUERIES = 100
_LATENCY_SECONDS = 3.0
_LATENCY_DEPTH = 10


@dataclass(frozen=True)
class Experiment:
    """What came out: the report, and the rankings it is made from.

    Attributes:
        runs: collection → system → query_id → doc_id → score; at most 1,000 documents a query.
    """

    report: Report
    runs: dict[str, dict[str, Run]]


@dataclass(frozen=True)
class _Ranked:
    name: str
    run: Run
    costs: Costs
    settings: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Material:
    documents: dict[str, Document]
    queries: list[Query]
    qrels: Qrels
    dropped: int
    sha256: str


def run_experiment(
    corpora: Sequence[Corpus],
    *,
    split: str,
    encoders: Sequence[tuple[str, Encoder]] = (),
    indexes: Sequence[tuple[str, Searcher]] = (),
    runs: Mapping[str, Run] | None = None,
    measures: Sequence[str] = DEFAULT_MEASURES,
    baseline: str | None = None,
    rerank: bool = False,
) -> Experiment:
    """Ranks every judged query of every collection with every system, and compares the systems.

    Args:
        corpora: BEIR folders.
        split: which judgments.
        encoders: name and encoder of each pair of dense and hybrid rows; unfitted ones are fitted on the corpus.
        indexes: name and searcher of each pair of dense and hybrid rows of an index that is there already.
        runs: rankings made elsewhere, as further rows.
        measures: ir-measures names.
        baseline: the row that the others are compared with; BM25 by default.
        rerank: add a row with the hybrid ranking reordered by the encoder's language model.

    Raises:
        ConfigError: two systems or two collections of one name.
        CorpusError: no queries or judgments, or judged queries without a text.
        EvaluationError: see `evaluate` and `compare`.
        MismatchError: an index holds something else than a collection.
    """
    check_measures(measures)
    _refuse_repeated([name for name, _ in [*encoders, *indexes]], "encoders or indexes", "rename a folder")
    _refuse_repeated([corpus.name for corpus in corpora], "collections", "rename a folder")
    parts, all_runs = [], {}
    for corpus in corpora:
        material = _judged(corpus, split)
        systems = {ranked.name: ranked for ranked in _rank_all(corpus, material, encoders, rerank)}
        for name, searcher in indexes:
            _check_index(name, searcher, corpus, material)
            systems |= {ranked.name: ranked for ranked in _rank_index(name, searcher, material.queries, rerank)}
        for name, run in (runs or {}).items():
            if name in systems:
                raise ConfigError(f"run '{name}' has the name of another system; rename the file")
            systems[name] = _given(name, run, material)
        parts.append(_report(corpus.name, split, material, systems, measures=measures, baseline=baseline))
        all_runs[corpus.name] = {name: ranked.run for name, ranked in systems.items()}
    return Experiment(Report(tuple(parts)), all_runs)


def _report(
    name: str,
    split: str,
    material: _Material,
    systems: Mapping[str, _Ranked],
    *,
    measures: Sequence[str],
    baseline: str | None,
) -> CollectionReport:
    part = compare(
        material.qrels,
        {system: ranked.run for system, ranked in systems.items()},
        measures=measures,
        baseline=baseline,
        name=name,
        queries={query.query_id: query.text for query in material.queries},
        documents=material.documents,
    ).collections[0]
    notes = [known_item.NOTE] if split == known_item.SPLIT else []
    if material.dropped:
        notes.append(f"{material.dropped} judgments left out: the corpus has no such document")
    notes += part.notes
    settings = {"split": split, "depth": str(DEPTH)}
    for ranked in systems.values():
        notes += ranked.notes
        settings |= ranked.settings
    return replace(
        part,
        systems=tuple(replace(system, costs=systems[system.name].costs) for system in part.systems),
        notes=tuple(notes),
        documents=len(material.documents),
        corpus_sha256=material.sha256,
        settings=settings,
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


def find_collections(path: Location) -> list[Corpus]:
    """The judged collection in a folder, or those in its subfolders.

    Raises:
        CorpusError: there is none.
    """
    corpus = open_corpus(path)
    if corpus.judged:
        return [corpus]
    inner = [open_corpus(folder) for folder in children(path) if folder.is_dir()] if path.is_dir() else []
    found = [corpus for corpus in inner if corpus.splits]
    if not found:
        raise CorpusError(
            f"{path}: no judgments here; a folder with corpus.jsonl, queries.jsonl and qrels/ is needed, or a folder "
            "of such folders; --known-item measures on text without judgments"
        )
    return found


def _judged(corpus: Corpus, split: str) -> _Material:
    """Documents, judged queries, and the judgments of documents that are there."""
    documents = {document.doc_id: document for document in corpus.documents()}
    judged = corpus.qrels(split)
    qrels = {
        query_id: {doc_id: grade for doc_id, grade in grades.items() if doc_id in documents}
        for query_id, grades in judged.items()
    }
    if not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
        raise EvaluationError(f"{corpus.path}: no query of split '{split}' has a relevant document in the corpus")
    texts = {query.query_id: query for query in corpus.queries()}
    missing = [query_id for query_id in qrels if query_id not in texts]
    if missing:
        raise CorpusError(f"{corpus.path}: query '{missing[0]}' is judged in '{split}' but not in queries.jsonl")
    return _Material(
        documents=documents,
        queries=[texts[query_id] for query_id in qrels],
        qrels=qrels,
        dropped=sum(map(len, judged.values())) - sum(map(len, qrels.values())),
        sha256=corpus_sha256(documents.values()),
    )


def _given(name: str, run: Run, material: _Material) -> _Ranked:
    """A ranking made elsewhere."""
    unknown = len({doc_id for ranking in run.values() for doc_id in ranking} - material.documents.keys())
    note = f"{name}: {unknown} documents are not in the corpus; they count as not relevant"
    return _Ranked(name, run, Costs(), notes=(note,) if unknown else ())


def _rank_all(
    corpus: Corpus, material: _Material, encoders: Sequence[tuple[str, Encoder]], rerank: bool
) -> Iterator[_Ranked]:
    doc_ids = list(material.documents)
    contents = [document.content for document in material.documents.values()]
    yield _rank_words("bm25", LexicalIndex.build, _saved_bytes, contents, doc_ids, material.queries)
    yield _rank_words("lsi-256", LsiIndex, lambda index: index.nbytes, contents, doc_ids, material.queries)
    for name, encoder in encoders:
        yield from _rank_encoder(corpus, name, encoder, material.queries, rerank)


def _rank_words(
    name: str,
    build: Callable[[list[str]], Words],
    size: Callable[[Words], int],
    contents: list[str],
    doc_ids: list[str],
    queries: list[Query],
) -> _Ranked:
    """A system that needs no encoder."""
    reset_peak_memory()
    started = time.perf_counter()
    index = build(contents)
    rate = len(contents) / (time.perf_counter() - started)
    run: Run = {}
    with progress(f"ranking {name}", total=len(queries)) as advance:
        for query in queries:
            rows, scores = index.search(query.text, DEPTH)
            run[query.query_id] = {doc_ids[row]: float(score) for row, score in zip(rows, scores, strict=True)}
            advance()
    p50, p95 = _latencies(lambda text: index.search(text, _LATENCY_DEPTH), queries)
    costs = Costs(
        index_bytes=size(index),
        documents_per_second=rate,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        peak_memory_bytes=peak_memory_bytes(),
    )
    return _Ranked(name, run, costs)


def _saved_bytes(index: LexicalIndex) -> int:
    with tempfile.TemporaryDirectory(prefix="lmr-evaluate-") as folder:
        index.save(Path(folder))
        return folder_bytes(Path(folder))


def _rank_encoder(corpus: Corpus, name: str, encoder: Encoder, queries: list[Query], rerank: bool) -> Iterator[_Ranked]:
    """The rows of one encoder, from one index."""
    with tempfile.TemporaryDirectory(prefix="lmr-evaluate-") as folder:
        index = Path(folder) / "index"
        reset_peak_memory()
        built = build_index(corpus, encoder=encoder, output=index)
        encoding = built.seconds["tokenize"] + built.seconds["encode"]
        words_bytes = folder_bytes(index / "lexical")
        model_bytes = folder_bytes(index / ENCODER_NAME)
        index_bytes = folder_bytes(index) - model_bytes
        for mode, ranked in _rank_modes(name, Searcher(index), queries, rerank):
            costs = replace(
                ranked.costs,
                parameters=encoder.parameter_count,
                model_bytes=model_bytes,
                index_bytes=index_bytes - (words_bytes if mode == "dense" else 0),
                documents_per_second=built.documents / encoding,
                tokens_per_second=built.tokens / encoding,
                mean_tokens=built.tokens / built.documents,
            )
            yield replace(ranked, costs=costs)


def _rank_index(name: str, searcher: Searcher, queries: list[Query], rerank: bool) -> Iterator[_Ranked]:
    """The rows of an index that is there already."""
    reset_peak_memory()
    where = {f"{name}, index": f"{searcher.backend.name} ({searcher.backend.kind})"}
    words = {f"{name}, BM25": searcher.backend.lexical_place}
    for mode, ranked in _rank_modes(name, searcher, queries, rerank):
        yield replace(ranked, settings=ranked.settings | where | (words if mode == "hybrid" else {}))


def _rank_modes(name: str, searcher: Searcher, queries: list[Query], rerank: bool) -> Iterator[tuple[Mode, _Ranked]]:
    rows: list[tuple[str, Mode, Rerank]] = [("dense", "dense", "none"), ("hybrid", "hybrid", "none")]
    if rerank:
        rows.append(("hybrid+lm", "hybrid", "lm"))
    texts = [query.text for query in queries]
    manifest = searcher.manifest
    for label, mode, second_stage in rows:
        rankings = searcher.rank(texts, k=DEPTH, mode=mode, rerank=second_stage)
        run = {query.query_id: ranking for query, ranking in zip(queries, rankings, strict=True)}
        p50, p95 = _latencies(_searching(searcher, mode, second_stage), queries)
        costs = Costs(latency_p50_ms=p50, latency_p95_ms=p95, peak_memory_bytes=peak_memory_bytes())
        settings = {f"{name}, encoder": str(manifest["encoder_sha256"])[:12]}
        if mode == "hybrid":
            settings[f"{name}, dense weight"] = f"{manifest['dense_weight']:g} ({manifest['dense_weight_source']})"
        yield mode, _Ranked(f"{label}:{name}", run, costs, settings)


def _check_index(name: str, searcher: Searcher, corpus: Corpus, material: _Material) -> None:
    if searcher.manifest["corpus_sha256"] != material.sha256:
        raise MismatchError(
            f"index '{name}' holds {searcher.manifest['corpus_path']} as it was when it was built, "
            f"not {corpus.path} as it is now; build it again, or evaluate the corpus that it is of"
        )


def _searching(searcher: Searcher, mode: Mode, rerank: Rerank) -> Callable[[str], Any]:
    return lambda text: searcher.rank([text], k=_LATENCY_DEPTH, mode=mode, rerank=rerank)


def _latencies(search: Callable[[str], Any], queries: list[Query]) -> tuple[float, float]:
    """Median and 95 % percentile of the milliseconds of a query, asked one by one: 100 of them, or 3 seconds' worth."""
    search(queries[0].text)
    times: list[float] = []
    for query in queries[:_LATENCY_QUERIES]:
        started = time.perf_counter()
        search(query.text)
        times.append(1000 * (time.perf_counter() - started))
        if sum(times) > 1000 * _LATENCY_SECONDS:
            break
    p50, p95 = np.percentile(times, (50, 95))
    return float(p50), float(p95)


def _refuse_repeated(names: Sequence[str], what: str, advice: str) -> None:
    if len(set(names)) < len(names):
        raise ConfigError(f"two {what} have one name ({', '.join(names)}); {advice}")
