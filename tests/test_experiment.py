"""Comparing systems: the table's rows, agreement with trec_eval, and what is left out is counted."""

from pathlib import Path
from typing import Any

import ir_measures
import pytest
import pytrec_eval
from conftest import require_data

from lm_retrieval.corpus import Corpus, open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CorpusError
from lm_retrieval.evaluation.evaluator import evaluate, trec_order
from lm_retrieval.evaluation.report import CollectionReport
from lm_retrieval.evaluation.trec import read_run, write_run
from lm_retrieval.experiment import run_experiment
from lm_retrieval.index.lexical import LexicalIndex


def part_of(corpus: Corpus, **options: Any) -> CollectionReport:
    return run_experiment([corpus], split="test", **options).report.collections[0]


def test_rows_are_bm25_lsi_and_each_encoder_alone_and_fused(judged: Path, encoder: Encoder) -> None:
    part = part_of(open_corpus(judged), encoders=[("tiny", encoder)])
    assert [system.name for system in part.systems] == ["bm25", "lsi-256", "dense:tiny", "hybrid:tiny"]
    assert (part.documents, part.queries, part.baseline) == (40, 12, "bm25")
    bm25 = part.systems[0].evaluation
    assert bm25.measures["RR@10"] > 0.8
    assert set(bm25.measures) == {"nDCG@10", "RR@10", "AP@1000", "R@100", "P@10"}


def test_every_row_agrees_with_trec_eval_on_the_written_run(judged: Path, encoder: Encoder, tmp_path: Path) -> None:
    corpus = open_corpus(judged)
    found = run_experiment([corpus], split="test", encoders=[("tiny", encoder)])
    qrels = corpus.qrels("test")
    for system in found.report.collections[0].systems:
        write_run(tmp_path / "x.run", found.runs[corpus.name][system.name], tag="x")
        measures = {"ndcg_cut.10", "recall.100", "P.10", "map_cut.1000"}
        official = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(read_run(tmp_path / "x.run"))
        for ours, theirs in (("nDCG@10", "ndcg_cut_10"), ("R@100", "recall_100"), ("P@10", "P_10")):
            mean = sum(values[theirs] for values in official.values()) / len(qrels)
            assert system.evaluation.measures[ours] == pytest.approx(mean, abs=1e-9), (system.name, ours)


def test_every_row_says_what_it_costs(judged: Path, encoder: Encoder) -> None:
    part = part_of(open_corpus(judged), encoders=[("tiny", encoder)])
    costs = {system.name: system.costs for system in part.systems}
    for name, cost in costs.items():
        assert cost is not None
        assert cost.index_bytes > 100
        assert 0 < cost.latency_p50_ms <= cost.latency_p95_ms
        assert cost.documents_per_second > 0
        assert cost.peak_memory_bytes > 10_000_000
        assert (cost.parameters is None) == ("tiny" not in name)
    dense, hybrid = costs["dense:tiny"], costs["hybrid:tiny"]
    assert dense.parameters == sum(p.numel() for p in encoder.checkpoint.model.parameters())
    assert hybrid.index_bytes > dense.index_bytes
    tokens = sum(len(encoder.tokenizer.encode(d.content)) for d in open_corpus(judged).documents())
    # the overlap of windows is encoded twice
    assert tokens / 40 < dense.mean_tokens < 1.2 * tokens / 40


def test_judgments_without_a_document_are_left_out_and_counted(judged: Path) -> None:
    qrels = judged / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text() + "q1\tgone\t2\nq2\tgone-too\t1\n")
    part = part_of(open_corpus(judged))
    assert part.notes[0] == "2 judgments left out: the corpus has no such document"
    assert part.queries == 12


def test_a_judged_query_without_text_is_an_error(judged: Path) -> None:
    qrels = judged / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text() + "q99\td1\t1\n")
    with pytest.raises(CorpusError, match="query 'q99' is judged"):
        part_of(open_corpus(judged))


def test_a_corpus_without_judgments_is_an_error(notes: Path) -> None:
    with pytest.raises(CorpusError, match="no judgments here"):
        part_of(open_corpus(notes))


def test_baselines_on_cranfield_are_what_standard_tools_give() -> None:
    part = part_of(open_corpus(require_data("collections/cranfield")))
    figures = {system.name: system.evaluation.measures["nDCG@10"] for system in part.systems}
    assert part.queries == 225
    # bm25s + Snowball: 0.512; TF-IDF + SVD in 256 dimensions: 0.552, with slightly different stop lists
    assert figures["bm25"] == pytest.approx(0.512, abs=0.015)
    assert figures["lsi-256"] == pytest.approx(0.552, abs=0.015)


@pytest.mark.parametrize("name", ["cranfield", "nfcorpus"])
def test_a_bm25_run_has_the_figures_of_pytrec_eval_and_of_ir_measures(name: str, tmp_path: Path) -> None:
    corpus = open_corpus(require_data(f"collections/{name}"))
    documents = list(corpus.documents())
    known = {document.doc_id for document in documents}
    qrels = {q: {d: g for d, g in grades.items() if d in known} for q, grades in corpus.qrels("test").items()}
    index = LexicalIndex.build(document.content for document in documents)
    run = {}
    for query in corpus.queries():
        if query.query_id in qrels:
            rows, scores = index.search(query.text, 1000)
            run[query.query_id] = {documents[row].doc_id: float(score) for row, score in zip(rows, scores, strict=True)}
    names = {
        "nDCG@10": "ndcg_cut_10",
        "RR": "recip_rank",
        "AP@1000": "map_cut_1000",
        "P@10": "P_10",
        "R@100": "recall_100",
    }
    ours = evaluate(qrels, run, measures=tuple(names)).measures
    wanted = {"ndcg_cut.10", "recip_rank", "map_cut.1000", "P.10", "recall.100"}
    official = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(run)
    write_run(tmp_path / "bm25.run", {q: {d: run[q][d] for d in trec_order(run[q])} for q in run}, tag="bm25")
    read = list(ir_measures.read_trec_run(str(tmp_path / "bm25.run")))
    elsewhere = ir_measures.calc_aggregate([ir_measures.parse_measure(name) for name in names], qrels, read)
    for name, theirs in names.items():
        # a query that BM25 has no answer to counts 0
        assert ours[name] == pytest.approx(sum(row[theirs] for row in official.values()) / len(qrels), abs=1e-9)
        assert ours[name] == pytest.approx(elsewhere[ir_measures.parse_measure(name)], abs=1e-9)
