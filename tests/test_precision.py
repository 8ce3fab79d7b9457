"""Models in fewer bits: what int8 keeps, what is stored, and that bfloat16 and int8 rank like float32."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Said, make_texts, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lm_retrieval.checkpoint import (
    Checkpoint,
    build_pooling,
    save_checkpoint,
    stored_dtype,
    weights_fingerprint,
)
from lm_retrieval.config import BigramConfig, EncoderConfig, GptConfig, LstmConfig, ModelConfig, RunConfig
from lm_retrieval.config import TransformerConfig as Transformer
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CheckpointError, ConfigError, StorageError
from lm_retrieval.evaluation.evaluator import evaluate
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.store import Store
from lm_retrieval.models import build_model
from lm_retrieval.models.precision import from_int8, in_precision, to_int8
from lm_retrieval.runtime import Precision, resolve_dtype
from lm_retrieval.tokenizer import Tokenizer

AUTO = resolve_dtype("auto", torch.device("cpu"))
BLOCKS = {"num_layers": 2, "num_heads": 2, "feedforward_dim": 24, "max_length": 64}
MODELS: dict[str, ModelConfig] = {
    "lstm": LstmConfig(embedding_dim=16, hidden_dim=16, num_layers=2),
    "lstm tied": LstmConfig(embedding_dim=8, hidden_dim=16, num_layers=2, tie_weights=True),
    "transformer": Transformer(embedding_dim=8, hidden_dim=16, tie_weights=True, **BLOCKS),
    "gpt": GptConfig(embedding_dim=16, tie_weights=True, **BLOCKS),
    "bigram": BigramConfig(),
}
TEXTS = make_texts(30, seed=3)


@pytest.fixture(scope="module")
def checkpoints(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each, of random numbers; the LSTMs with a learned pooling and a transform."""
    base = tmp_path_factory.mktemp("checkpoints")
    for name, model in MODELS.items():
        torch.manual_seed(2)
        built = build_model(model, vocab_size=tokenizer.vocab_size)
        learned = name.startswith("lstm")
        encoder = EncoderConfig(
            max_length_tokens=32,
            overlap_tokens=4,
            pooling="learned" if learned else "mean",
            postprocess="center" if learned else "none",
        )
        pooling = build_pooling(built) if learned else None
        with torch.no_grad():
            for part in (built, *((pooling,) if pooling else ())):
                for parameter in part.parameters():
                    # vectors in sixteenths: equal in float32, float16 and bfloat16
                    parameter.copy_(torch.randn(parameter.shape) / 4)
                    if parameter.dim() == 1:
                        parameter.copy_((parameter * 16).round() / 16 + 1 / 16)
            if pooling:
                pooling.state_scale.copy_(torch.ones_like(pooling.state_scale))
        config = RunConfig(model=model, encoder=encoder)
        save_checkpoint(base / "raw" / name, model=built, tokenizer=tokenizer, config=config, pooling=pooling)
        Encoder.load(base / "raw" / name, device="cpu", threads=1).fit(TEXTS).save(base / name)
    return {name: base / name for name in MODELS}


@pytest.fixture(params=MODELS)
def path(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Path:
    return checkpoints[request.param]


def load(path: Path, dtype: Precision = "float32") -> Encoder:
    return Encoder.load(path, device="cpu", threads=1, dtype=dtype)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


# ---------------------------------------------------------------- rounding to eight bits


TINIEST = 127 * torch.finfo(torch.float32).tiny


def assert_rounded(weights: torch.Tensor) -> None:
    """Every value is within half a step of what it was, steps are as fine as can be, and once is enough.

    Of rows so small that their scale would not be a normal number nothing need be left.
    """
    rounded, scales = to_int8(weights)
    assert (rounded.dtype, rounded.shape) == (torch.int8, weights.shape)
    assert (scales.dtype, scales.shape) == (torch.float32, weights.shape[:1])
    assert rounded.min() >= -127
    back = from_int8(rounded, scales)
    assert torch.equal(back.double(), rounded.double() * scales.double()[:, None])  # exact products
    again, same_scales = to_int8(back)
    assert torch.equal(again, rounded)
    assert torch.equal(same_scales, scales)
    largest = weights.double().abs().amax(1)
    kept = (largest >= TINIEST) | (back.abs().amax(1) > 0)
    errors = (back.double() - weights.double()).abs().amax(1)
    assert (errors <= scales.double() * (0.5 + 1e-5))[kept].all()
    assert ((scales.double() - largest / 127).abs() <= largest / 127 * 2**-8)[kept].all()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_values_are_rounded_to_the_nearest_of_255_steps(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    values = st.floats(-1, 1, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5 / 127, 126.5 / 127])
    numbers = data.draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    magnitudes = data.draw(st.lists(st.integers(-25, 37), min_size=rows, max_size=rows))
    weights = torch.tensor(numbers).view(rows, columns) * 10.0 ** torch.tensor(magnitudes)[:, None]
    weights[weights.abs() < 1e-30] = 0
    assert_rounded(weights)


@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-38, 1e-37, 1e-36, 1e-30, 1.0, 1e30, 2.5e38])
def test_tiny_and_huge_rows_are_rounded_like_others(magnitude: float) -> None:
    generator = torch.Generator().manual_seed(0)
    assert_rounded((2 * torch.rand(50, 40, generator=generator) - 1) * magnitude)


def test_rows_of_zeros_stay_zeros() -> None:
    weights = torch.zeros(3, 5)
    weights[1, 2] = 4.0
    rounded, scales = to_int8(weights)
    assert scales.tolist() == [0.0, pytest.approx(4 / 127, rel=2**-8), 0.0]
    assert from_int8(rounded, scales)[[0, 2]].abs().max() == 0
    assert_rounded(weights)


def test_a_row_of_one_value_is_kept_to_the_precision_of_its_scale() -> None:
    for value in (1.0, -3.14159, 0.001):
        back = from_int8(*to_int8(torch.full((1, 4), value)))
        assert back.tolist()[0] == pytest.approx([value] * 4, rel=2**-8)


def test_each_row_has_its_own_scale() -> None:
    weights = torch.randn(2, 100, generator=torch.Generator().manual_seed(1))
    weights[1] *= 1e-6
    back = from_int8(*to_int8(weights))
    torch.testing.assert_close(back[1], weights[1], rtol=0, atol=1e-6 * 4 / 127)


# ---------------------------------------------------------------- models in another precision


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "auto", "float32"])
def test_a_copy_is_made_and_the_model_left_alone(path: Path, dtype: Precision) -> None:
    model = Checkpoint.load(path).model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    made = in_precision(model, dtype)
    expected = {"bfloat16": torch.bfloat16, "float32": torch.float32}.get(dtype, AUTO)
    assert {parameter.dtype for parameter in made.parameters()} == {expected}
    assert (made is model) == (dtype != "int8" and expected == torch.float32)
    assert not made.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert [name for name, _ in made.named_parameters()] == list(before)  # tied weights are tied still


def test_int8_rounds_matrices_and_nothing_else(path: Path) -> None:
    model = Checkpoint.load(path).model
    made = dict(in_precision(model, "int8").named_parameters())
    for name, parameter in model.named_parameters():
        expected = from_int8(*to_int8(parameter)) if parameter.dim() == 2 else parameter
        assert torch.equal(made[name], expected.to(AUTO))


def test_what_an_encoder_computes_in_shows_in_the_model_not_in_the_vectors(path: Path) -> None:
    exact = load(path)
    for dtype in ("bfloat16", "int8", "auto"):
        low = load(path, dtype)
        assert (low.dtype, exact.dtype) == (dtype, "float32")
        vectors = low.encode(TEXTS)
        assert vectors.dtype == np.float32
        assert (vectors * exact.encode(TEXTS)).sum(1).min() > 0.995
        assert (low.fingerprint, low.base_fingerprint) == (exact.fingerprint, exact.base_fingerprint)
        assert low.parameter_count == exact.parameter_count
        assert {parameter.dtype for parameter in low.checkpoint.model.parameters()} == {torch.float32}


def test_fitting_keeps_the_precision(checkpoints: dict[str, Path]) -> None:
    low = load(checkpoints["lstm"], "bfloat16").fit(TEXTS)
    assert low.dtype == "bfloat16"
    assert next(low.model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float16", "abacus"])
def test_precisions_that_cannot_be_used_are_refused(lmr: Callable[..., Said], path: Path, dtype: str) -> None:
    corpus = write_jsonl(Path("c.jsonl"), [{"_id": "a", "text": "the river"}])
    for command in (
        ("embed", corpus, "--encoder", path, "--output", "ix"),
        ("perplexity", path, corpus),
        ("generate", path, "--prompt", "the"),
        ("bench", path, "--corpus", corpus, "--seconds", "0.1"),
    ):
        said = lmr(*command, "--dtype", dtype, "--device", "cpu", "-q")
        assert said.stdout == ""
        if dtype == "float16":
            assert said == Said(1, "", "Error: float16 needs a GPU; on a CPU use bfloat16 or float32\n")
        else:
            assert said.code == 2
    assert not Path("ix").exists()


def test_a_library_call_is_told_the_same(path: Path) -> None:
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        load(path, "float16")
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        Checkpoint.load(path, dtype="float16")
    with pytest.raises(ConfigError, match="do not compute in int8"):
        resolve_dtype("int8", torch.device("cpu"))


# ---------------------------------------------------------------- eight bits on disk


@pytest.fixture
def small(path: Path, tmp_path: Path) -> Path:
    """The same checkpoint in eight bits."""
    load(path).save(tmp_path / "int8" / path.name, dtype=torch.int8)
    return tmp_path / "int8" / path.name


def test_stored_in_eight_bits_are_matrices_with_their_scales_and_half_precision_vectors(
    path: Path, small: Path
) -> None:
    for name in ("model.safetensors", "pooling.safetensors"):
        if (path / name).exists():
            before, after = load_file(path / name), load_file(small / name)
            matrices = {key for key, tensor in before.items() if tensor.dim() == 2}
            assert after.keys() == before.keys() | {f"{key}.scale" for key in matrices}
            for key, tensor in before.items():
                assert after[key].dtype == (torch.int8 if key in matrices else torch.float16)
                assert after[key].shape == tensor.shape
                if key in matrices:
                    assert torch.equal(after[f"{key}.scale"], to_int8(tensor)[1])


def test_quantised_loaded_and_quantised_again_nothing_changes(small: Path, tmp_path: Path) -> None:
    first = load(small)
    assert stored_dtype(first.checkpoint) == torch.int8
    first.save(tmp_path / "explicit", dtype=torch.int8)
    first.save(tmp_path / "as it was")
    for name in ("explicit", "as it was"):
        assert files(tmp_path / name) == files(small)
        copy = load(tmp_path / name)
        assert (copy.fingerprint, copy.base_fingerprint) == (first.fingerprint, first.base_fingerprint)
        assert weights_fingerprint(copy.checkpoint) == weights_fingerprint(first.checkpoint)


def test_the_fingerprint_of_a_quantised_encoder_is_its_own(path: Path, small: Path) -> None:
    assert load(small).base_fingerprint != load(path).base_fingerprint


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "auto"])
def test_saving_an_encoder_in_another_precision_writes_the_weights_it_came_from(
    path: Path, tmp_path: Path, stored: torch.dtype, dtype: Precision
) -> None:
    load(path).save(tmp_path / "first", dtype=stored)
    encoder = load(tmp_path / "first", dtype)
    encoder.encode(TEXTS[:2])
    encoder.save(tmp_path / "second")
    assert files(tmp_path / "second") == files(tmp_path / "first")
    assert load(tmp_path / "second", dtype).fingerprint == encoder.fingerprint


def test_computing_in_int8_is_computing_with_the_quantised_weights(path: Path, small: Path) -> None:
    rounded = load(path, "int8").model
    stored = in_precision(Checkpoint.load(small).model, "auto")
    for (name, parameter), (_, other) in zip(rounded.named_parameters(), stored.named_parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_an_encoder_in_int8_gives_the_vectors_of_its_quantised_copy(path: Path, small: Path) -> None:
    low, stored = load(path, "int8").encode(TEXTS), load(small, "auto").encode(TEXTS)
    if (path / "pooling.safetensors").exists():
        assert (low * stored).sum(1).min() > 0.99  # the copy's token vectors are rounded, too
    else:
        np.testing.assert_array_equal(low, stored)
    assert (load(small).encode(TEXTS) * load(path).encode(TEXTS)).sum(1).min() > 0.99


@pytest.mark.parametrize("name", ["lstm-base", "transformer-base"])
def test_the_shipped_encoders_in_eight_bits_are_half_as_large_and_point_the_same_way(name: str, tmp_path: Path) -> None:
    shipped = load(ROOT / "checkpoints" / name)
    assert stored_dtype(shipped.checkpoint) == torch.float16
    shipped.save(tmp_path / "int8", dtype=torch.int8)
    for part in ("model.safetensors", "pooling.safetensors"):
        ratio = (tmp_path / "int8" / part).stat().st_size / (shipped.checkpoint.path / part).stat().st_size
        assert 0.49 < ratio < 0.56
    exact = shipped.encode(TEXTS)
    for other in (load(tmp_path / "int8"), load(shipped.checkpoint.path, "int8"), load(tmp_path / "int8", "bfloat16")):
        assert (other.encode(TEXTS) * exact).sum(1).min() > 0.999


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("embedding.weight.scale"),
        lambda tensors: tensors.pop("embedding.weight"),
        lambda tensors: tensors.update({"embedding.weight.scale": tensors["embedding.weight.scale"][:-1]}),
        lambda tensors: tensors.update({"lstm.bias_ih_l0.scale": torch.ones(64)}),
        lambda tensors: tensors.update({"unknown.scale": torch.ones(3)}),
    ],
    ids=["no scale", "scale alone", "short scale", "scale of a bias", "unknown scale"],
)
def test_scales_that_do_not_fit_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    from safetensors.torch import save_file

    load(checkpoints["lstm"]).save(tmp_path / "m", dtype=torch.int8)
    weights = tmp_path / "m" / "model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Checkpoint.load(tmp_path / "m")


def test_a_row_of_next_to_nothing_does_not_keep_an_index_from_being_updated(
    checkpoints: dict[str, Path], corpus_path: Path, tmp_path: Path
) -> None:
    encoder = load(checkpoints["lstm tied"])
    with torch.no_grad():
        dict(encoder.checkpoint.model.named_parameters())["embedding.weight"][7] *= 1e-37
    encoder.save(tmp_path / "small", dtype=torch.int8)
    corpus = open_corpus(corpus_path)
    report = build_index(corpus, encoder=load(tmp_path / "small"), output=tmp_path / "index")
    again = build_index(corpus, encoder=load(tmp_path / "index" / "encoder"), output=tmp_path / "index")
    assert (again.encoded, again.reused) == (0, report.chunks)


# ---------------------------------------------------------------- commands


def test_a_quantised_checkpoint_is_used_by_every_command(
    lmr: Callable[..., Said], checkpoints: dict[str, Path], corpus_path: Path
) -> None:
    source = checkpoints["lstm"]
    done = lmr("quantize", source, "--output", "checkpoints/small")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("checkpoints/small: ")
    small = Path("checkpoints/small")
    assert stored_dtype(Checkpoint.load(small)) == torch.int8
    assert lmr("info", "small").stdout.splitlines()[1].split() == ["kind", "checkpoint"]
    assert lmr("embed", corpus_path, "--encoder", "small", "--output", "indexes/ix", "-q").code == 0
    assert Encoder.load("indexes/ix/encoder").fingerprint == Encoder.load(small).fingerprint
    hits = json.loads(lmr("search", "a sparrow, part 17", "--encoder", "small", "--format", "json", "-k", "3").stdout)[
        "hits"
    ]
    assert hits[0]["id"] == "d17"
    again = lmr("embed", corpus_path, "--encoder", "small", "--output", "indexes/ix", "-q")
    assert "0 chunks encoded" in again.stdout
    measured = json.loads(lmr("perplexity", "small", corpus_path, "--format", "json").stdout)
    exact = json.loads(lmr("perplexity", source, corpus_path, "--format", "json").stdout)
    assert measured["perplexity"] == pytest.approx(exact["perplexity"], rel=0.02)
    assert measured["perplexity"] != exact["perplexity"]
    for dtype in ("float32", "bfloat16", "int8", "auto"):
        written = lmr(
            "generate", "small", "--prompt", "the river", "--max-new-tokens", "5", "--greedy", "--dtype", dtype
        )
        assert (written.code, written.stderr) == (0, "")
        assert written.stdout.startswith("the river")
        low = json.loads(lmr("perplexity", "small", corpus_path, "--format", "json", "--dtype", dtype).stdout)
        assert low["perplexity"] == pytest.approx(measured["perplexity"], rel=0.02)
    tuned = lmr(
        "tune", corpus_path, "--from", "small", "--output", "checkpoints/tuned", "--teacher", "none", "-q",
        "--set", "training.max_steps=2", "--set", "training.batch_size=8",
    )  # fmt: skip
    assert (tuned.code, tuned.stderr) == (0, "")
    before, after = (Checkpoint.load(folder).model for folder in (small, Path("checkpoints/tuned")))
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(one, other)  # the language model inside stays as it was


@pytest.mark.parametrize("name", ["transformer", "gpt", "bigram"])
def test_other_models_are_quantised_too(
    lmr: Callable[..., Said], checkpoints: dict[str, Path], corpus_path: Path, name: str
) -> None:
    assert lmr("quantize", checkpoints[name], "--output", "small").code == 0
    assert lmr("embed", corpus_path, "--encoder", "small", "--output", "ix", "-q").code == 0
    hits = json.loads(lmr("search", "a sparrow, part 17", "--index", "ix", "--format", "json", "-k", "3").stdout)[
        "hits"
    ]
    assert hits[0]["id"] == "d17"
    assert lmr("perplexity", "small", corpus_path).code == 0
    assert lmr("generate", "small", "--prompt", "the", "--max-new-tokens", "3", "--dtype", "int8").code == 0


def test_quantize_overwrites_nothing(lmr: Callable[..., Said], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = checkpoints["lstm"]
    shutil.copytree(checkpoints["gpt"], "there")
    before, original = files(Path("there")), files(source)
    for output in ("there", source):
        said = lmr("quantize", source, "--output", output)
        assert (said.code, said.stdout) == (1, "")
        assert said.stderr.startswith(f"Error: {output}: ")
        assert said.stderr.count("\n") == 1
    assert (files(Path("there")), files(source)) == (before, original)


def test_quantize_does_not_make_an_index_unreadable(
    lmr: Callable[..., Said], checkpoints: dict[str, Path], corpus_path: Path
) -> None:
    assert lmr("embed", corpus_path, "--encoder", checkpoints["gpt"], "--output", "ix", "-q").code == 0
    before = Path("ix/manifest.json").read_bytes()
    said = lmr("quantize", checkpoints["gpt"], "--output", "ix")
    assert Path("ix/manifest.json").read_bytes() == before
    assert (said.code, said.stderr.count("\n")) == (1, 1)
    assert lmr("search", "a sparrow, part 17", "--index", "ix").code == 0


def test_the_advice_of_quantize_names_only_options_that_it_has(
    lmr: Callable[..., Said], checkpoints: dict[str, Path]
) -> None:
    said = lmr("quantize", checkpoints["lstm"], "--output", checkpoints["gpt"])
    assert said.code == 1
    assert "--output" in said.stderr
    assert "--resume" not in said.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("absent", "--output", "o"), 1, "absent: no such checkpoint folder"),
        (("c.jsonl", "--output", "o"), 1, "c.jsonl: no such checkpoint folder"),
        (("SOURCE", "--output", "c.jsonl"), 1, "c.jsonl"),
        (("SOURCE",), 2, "--output"),
    ],
    ids=["absent", "no folder", "a file in the way", "no output"],
)
def test_mistakes_of_quantize_are_one_line(
    lmr: Callable[..., Said], checkpoints: dict[str, Path], arguments: tuple[str, ...], code: int, part: str
) -> None:
    Path("c.jsonl").write_text('{"text": "a"}\n')
    said = lmr("quantize", *(checkpoints["lstm"] if argument == "SOURCE" else argument for argument in arguments))
    assert (said.code, said.stdout) == (code, "")
    assert part in said.stderr
    assert code == 2 or said.stderr.count("\n") == 1
    assert not Path("o").exists()


def test_a_file_in_the_way_of_an_encoder_is_a_storage_error(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for name in ("lstm", "gpt"):  # with a transform and without
        with pytest.raises(StorageError, match="a folder is needed"):
            load(checkpoints[name]).save(tmp_path / "file", dtype=torch.int8)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_an_index_is_brought_up_to_date_in_any_precision(
    lmr: Callable[..., Said], checkpoints: dict[str, Path], corpus_path: Path, name: str
) -> None:
    path = checkpoints[name]
    corpus = Path(shutil.copy(corpus_path, "corpus.jsonl"))
    begin = lmr("embed", corpus, "--encoder", path, "--output", "ix", "--dtype", "bfloat16", "-q")
    assert begin.code == 0
    count = re.search(r"^(\d+) chunks encoded$", begin.stdout, flags=re.M)
    assert count
    vectors = files(Path("ix/embeddings"))
    for options in (("float32",), ("float32", "--encoder", path), ("int8",), ("auto", "--encoder", path)):
        again = lmr("embed", corpus, "--output", "ix", "-q", "--dtype", *options)
        assert again.code == 0, again.stderr
        assert f"0 chunks encoded, {count[1]} unchanged" in again.stdout
        assert files(Path("ix/embeddings")) == vectors
    with corpus.open("a") as stream:
        stream.write(json.dumps({"_id": "new", "text": "volcanoes of the harbour"}) + "\n")
    more = lmr("embed", corpus, "--output", "ix", "--dtype", "int8", "-q")
    assert f"1 chunks encoded, {count[1]} unchanged" in more.stdout
    assert files(Path("ix/encoder")) == files(path)
    new = np.concatenate(list(Store(Path("ix")).vector_shards()))[-1]
    low, exact = (load(path, dtype).encode("volcanoes of the harbour") for dtype in ("int8", "float32"))
    assert np.abs(new - low).max() < 1e-6 < np.abs(new - exact).max()


# ---------------------------------------------------------------- rankings


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in corpus, thinned out: what is relevant to a question, and every twentieth of the others."""
    whole, folder = tmp_path_factory.mktemp("docs") / "whole", tmp_path_factory.mktemp("docs") / "thin"
    # in a process of its own: importing the whole standard library warns and leaves traces
    code = "import sys; from pathlib import Path; from lm_retrieval.corpus.builtin import build_python_docs\n"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{code}build_python_docs(Path(sys.argv[1]))", whole], check=True
    )
    corpus = open_corpus(whole)
    relevant = {doc_id for grades in corpus.qrels("test").values() for doc_id in grades}
    rows: list[dict[str, object]] = [
        {"_id": document.doc_id, "title": document.title, "text": document.text}
        for number, document in enumerate(corpus.documents())
        if number % 20 == 0 or document.doc_id in relevant
    ]
    write_jsonl(folder / "corpus.jsonl", rows)
    shutil.copy(ROOT / "corpora" / "python-docs" / "queries.jsonl", folder)
    shutil.copytree(ROOT / "corpora" / "python-docs" / "qrels", folder / "qrels")
    return folder


def test_fewer_bits_rank_like_float32(documentation: Path, tmp_path: Path) -> None:
    corpus = open_corpus(documentation)
    documents, qrels = list(corpus.documents()), corpus.qrels("test")
    contents = [document.content for document in documents]
    queries = {query.query_id: query.text for query in corpus.queries() if query.query_id in qrels}
    exact = load(ROOT / "checkpoints" / "lstm-base")
    exact.save(tmp_path / "int8", dtype=torch.int8)
    asked = exact.encode(list(queries.values()))

    def ndcg(encoder: Encoder) -> float:
        scores = asked @ encoder.encode(contents).T
        run = {
            query_id: {document.doc_id: float(score) for document, score in zip(documents, row, strict=True)}
            for query_id, row in zip(queries, scores, strict=True)
        }
        return evaluate(qrels, run, measures=("nDCG@10",)).measures["nDCG@10"]

    expected = ndcg(exact)
    assert len(queries) == 142
    assert expected > 0.2
    assert ndcg(load(ROOT / "checkpoints" / "lstm-base", "bfloat16")) == pytest.approx(expected, abs=0.002)
    assert ndcg(load(tmp_path / "int8", "bfloat16")) == pytest.approx(expected, abs=0.005)
