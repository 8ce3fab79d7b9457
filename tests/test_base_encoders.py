"""The encoders that come with the package: present, small, loadable by name, and good at the obvious."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, ROOT

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.evaluation.evaluator import evaluate
from lm_retrieval.tokenizer import Tokenizer

NAMES = ("lstm-base", "transformer-base")
TEXTS = {
    "bread": "Knead the dough of flour, water and yeast, let it rise, then put the loaf into a hot oven.",
    "planet": "The orbit of Mars around the Sun takes almost two Earth years; it has two small moons.",
    "heart": "High blood pressure raises the risk of a stroke and of diseases of the arteries.",
    "code": "Opens a file and returns its lines as a list of strings; raises an error if it does not exist.",
    "law": "The court decided that the contract was void because one party had been deceived.",
}
QUESTIONS = {
    "how to bake": "bread",
    "astronomy": "planet",
    "cardiovascular health": "heart",
    "read text from disk in a program": "code",
    "ruling of a judge about an agreement": "law",
}


@pytest.fixture(scope="module", params=NAMES)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))  # found by name from any folder
        return Encoder.load(request.param)


def test_meaning_is_found_where_no_word_is_shared(encoder: Encoder) -> None:
    scores = encoder.encode(list(QUESTIONS)) @ encoder.encode(list(TEXTS.values())).T
    found = [list(TEXTS)[place] for place in scores.argmax(1)]
    assert sum(a == b for a, b in zip(found, QUESTIONS.values(), strict=True)) >= 4


def test_vectors_have_256_dimensions_and_do_not_depend_on_the_batch(encoder: Encoder) -> None:
    vectors = encoder.encode(list(TEXTS.values()))
    assert vectors.shape == (5, 256)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.stack([encoder.encode(text) for text in TEXTS.values()])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_encoder_is_small_and_describes_itself(name: str) -> None:
    folder = ROOT / "checkpoints" / name
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= 12_000_000
    assert {path.name for path in folder.iterdir() if path.suffix != ".pt"} >= {"config.json", "manifest.json"}
    card = (folder / "README.md").read_text()
    for word in ("CC BY-SA", "CC BY 4.0", "MIT", "Apache-2.0", "seed", "nDCG@10", "make base-"):
        assert word in card, word
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["dim"] == 256


def test_the_shipped_encoders_share_their_vocabulary() -> None:
    first, second = (Tokenizer.load(ROOT / "checkpoints" / name / "tokenizer.model") for name in NAMES)
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 16_000


def test_a_small_collection_is_ranked_well(encoder: Encoder) -> None:
    folder = DATA / "collections" / "adi"
    if not folder.is_dir():
        pytest.skip("needs the ADI collection in LMR_DATA")
    corpus = open_corpus(folder)
    documents, qrels = list(corpus.documents()), corpus.qrels("test")
    queries = {query.query_id: query.text for query in corpus.queries() if query.query_id in qrels}
    scores = encoder.encode(list(queries.values())) @ encoder.encode([document.content for document in documents]).T
    run = {
        query_id: {document.doc_id: float(score) for document, score in zip(documents, row, strict=True)}
        for query_id, row in zip(queries, scores, strict=True)
    }
    assert evaluate(qrels, run, measures=("nDCG@10",)).measures["nDCG@10"] > 0.2


def test_the_wheel_carries_what_is_shipped() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name in NAMES:
        assert f'"checkpoints/{name}" = "lm_retrieval/checkpoints/{name}"' in text
    assert Path(ROOT / "checkpoints" / "README.md").is_file()
