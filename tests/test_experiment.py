"""Comparing systems: the table's rows, agreement with trec_eval, and what is left out is counted."""

import json
from pathlib import Path

import pytest
import pytrec_eval
from conftest import require_data

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CorpusError
from lm_retrieval.evaluation.trec import read_run, write_run
from lm_retrieval.experiment import compare_systems


def test_rows_are_bm25_lsi_and_each_encoder_alone_and_fused(judged: Path, encoder: Encoder) -> None:
    comparison = compare_systems(open_corpus(judged), split="test", encoders=[("tiny", encoder)])
    assert [system.name for system in comparison.systems] == ["bm25", "lsi-256", "dense:tiny", "hybrid:tiny"]
    assert (comparison.documents, comparison.queries) == (40, 12)
    bm25 = comparison.systems[0].evaluation
    assert bm25.measures["RR@10"] > 0.8
    as_json = comparison.to_dict()
    assert list(as_json)[:3] == ["corpus", "split", "documents"]
    assert as_json["systems"][2]["name"] == "dense:tiny"
    assert set(as_json["systems"][0]["measures"]) == {"nDCG@10", "RR@10", "AP@1000", "R@100", "P@10"}


def test_every_row_agrees_with_trec_eval_on_the_written_run(judged: Path, encoder: Encoder, tmp_path: Path) -> None:
    corpus = open_corpus(judged)
    comparison = compare_systems(corpus, split="test", encoders=[("tiny", encoder)])
    qrels = corpus.qrels("test")
    for system in comparison.systems:
        write_run(tmp_path / "x.run", system.run, tag="x")
        measures = {"ndcg_cut.10", "recall.100", "P.10", "map_cut.1000"}
        official = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(read_run(tmp_path / "x.run"))
        for ours, theirs in (("nDCG@10", "ndcg_cut_10"), ("R@100", "recall_100"), ("P@10", "P_10")):
            mean = sum(values[theirs] for values in official.values()) / len(qrels)
            assert system.evaluation.measures[ours] == pytest.approx(mean, abs=1e-9), (system.name, ours)


def test_judgments_without_a_document_are_left_out_and_counted(judged: Path) -> None:
    qrels = judged / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text() + "q1\tgone\t2\nq2\tgone-too\t1\n")
    comparison = compare_systems(open_corpus(judged), split="test")
    assert comparison.judgments_without_document == 2
    assert comparison.queries == 12


def test_a_judged_query_without_text_is_an_error(judged: Path) -> None:
    qrels = judged / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text() + "q99\td1\t1\n")
    with pytest.raises(CorpusError, match="query 'q99' is judged"):
        compare_systems(open_corpus(judged), split="test")


def test_a_corpus_without_judgments_is_an_error(notes: Path) -> None:
    with pytest.raises(CorpusError, match="no judgments here"):
        compare_systems(open_corpus(notes), split="test")


def test_baselines_on_cranfield_are_what_standard_tools_give() -> None:
    corpus = open_corpus(require_data("collections/cranfield"))
    comparison = compare_systems(corpus, split="test")
    figures = {system.name: system.evaluation.measures["nDCG@10"] for system in comparison.systems}
    assert comparison.queries == 225
    # bm25s + Snowball: 0.512; TF-IDF + SVD in 256 dimensions: 0.552, with slightly different stop lists
    assert figures["bm25"] == pytest.approx(0.512, abs=0.015)
    assert figures["lsi-256"] == pytest.approx(0.552, abs=0.015)
    assert json.loads(json.dumps(comparison.to_dict()))["queries"] == 225
