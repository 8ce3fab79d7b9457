"""Models of transformers behind this package's interface, against transformers itself."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Said, make_texts

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")

from hugging_face_models import save_gpt2, save_mistral, save_tokenizer  # noqa: E402

from lm_retrieval.errors import CheckpointError, MissingExtraError  # noqa: E402
from lm_retrieval.generation import GenerationConfig, generate, stream  # noqa: E402
from lm_retrieval.hugging_face import HfModel  # noqa: E402
from lm_retrieval.loading import LoadedModel, default_name, load_language_model  # noqa: E402
from lm_retrieval.perplexity import perplexity  # noqa: E402
from lm_retrieval.scoring import score_tokens  # noqa: E402
from lm_retrieval.tokenizer import prompt_ids  # noqa: E402

GREEDY = GenerationConfig(max_new_tokens=20, do_sample=False)
PROMPTS = ["the river carries", "a", "our engine repairs old bridges 7."]


@pytest.fixture(scope="module")
def gpt2_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="module")
def gpt2(gpt2_path: Path) -> LoadedModel:
    return load_language_model(f"hf:{gpt2_path}")


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_language_model(f"hf:{save_mistral(tmp_path_factory.mktemp('models') / 'tiny-mistral')}")


def test_what_is_known_about_a_loaded_model(gpt2: LoadedModel, gpt2_path: Path) -> None:
    assert (gpt2.name, gpt2.kind, gpt2.folder) == ("tiny-gpt2", "gpt2", gpt2_path)
    assert gpt2.weights_bytes == (gpt2_path / "model.safetensors").stat().st_size
    assert (gpt2.model.context_length, gpt2.model.hidden_dim, gpt2.model.vocab_size) == (64, 32, 300)
    counts = gpt2.model.parameter_counts()
    assert set(counts) == {"wte", "wpe", "h", "ln_f"}  # the head is the embedding
    assert sum(counts.values()) == sum(weights.numel() for weights in gpt2.model.parameters())


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_greedy_text_is_that_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    loaded: LoadedModel = request.getfixturevalue(name)
    assert isinstance(loaded.model, HfModel)
    for prompt, result in zip(PROMPTS, generate(loaded.model, tokenizer=loaded.tokenizer, prompts=PROMPTS,
                                                config=GREEDY), strict=True):  # fmt: skip
        read = torch.tensor([prompt_ids(loaded.tokenizer, prompt)])
        expected = loaded.model.wrapped.generate(
            read, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(read), pad_token_id=0
        )[0, read.shape[1] :].tolist()
        if loaded.tokenizer.eos_id in expected:
            expected = expected[: expected.index(loaded.tokenizer.eos_id)]
        assert list(result.token_ids) == expected
        assert "".join(stream(loaded.model, tokenizer=loaded.tokenizer, prompt=prompt, config=GREEDY)) == result.text


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_two_halves_are_the_whole(name: str, request: pytest.FixtureRequest) -> None:
    loaded: LoadedModel = request.getfixturevalue(name)
    ids = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = loaded.model.logits(loaded.model(ids).hidden)
        first = loaded.model(ids[:, :13])
        second = loaded.model(ids[:, 13:], first.state)
        assert loaded.model.state_length(first.state) == 13
        torch.testing.assert_close(loaded.model.logits(second.hidden), whole[:, 13:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(whole, loaded.model.wrapped(ids).logits, rtol=1e-4, atol=1e-4)
        other = loaded.model(ids[1:, 13:], loaded.model.select_state(first.state, [1]))
        torch.testing.assert_close(loaded.model.logits(other.hidden), whole[1:, 13:], rtol=1e-4, atol=1e-4)


def test_text_goes_on_beyond_the_context_window(gpt2: LoadedModel) -> None:
    config = GenerationConfig(max_new_tokens=100, seed=2)
    (result,) = generate(gpt2.model, tokenizer=gpt2.tokenizer, prompts=["the"], config=config)
    assert len(result.token_ids) == 100 or result.finish_reason == "eos"
    with pytest.raises(ValueError, match="exceed the context window of 64"):
        gpt2.model(torch.zeros(1, 65, dtype=torch.int64))


def test_perplexity_is_that_of_the_models_own_loss(gpt2: LoadedModel) -> None:
    assert isinstance(gpt2.model, HfModel)
    text = make_texts(1)[0]
    ids = torch.tensor([prompt_ids(gpt2.tokenizer, text)])[:, :50]
    shown = gpt2.tokenizer.decode(ids[0].tolist())
    with torch.inference_mode():
        loss = float(gpt2.model.wrapped(ids, labels=ids).loss)
    report = perplexity(gpt2.model, tokenizer=gpt2.tokenizer, texts=[shown])
    assert report.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    scores = score_tokens(gpt2.model, [ids[0].tolist()])[0]
    assert sum(score.log_probability for score in scores) == pytest.approx(-report.nll, rel=1e-4)


def test_the_tokenizer_round_trips_and_names_its_marks(gpt2: LoadedModel) -> None:
    tokenizer = gpt2.tokenizer
    text = "the river ä日 carries\n two  spaces"
    assert tokenizer.decode(prompt_ids(tokenizer, text)) == text
    assert tokenizer.bos_id == tokenizer.eos_id
    assert tokenizer.mark_text(tokenizer.eos_id) == "<|endoftext|>"
    texts = [tokenizer.token_text(token_id) for token_id in tokenizer.encode("old 日")]
    assert "".join(texts).startswith("old ")
    assert [piece.startswith("bytes:") for piece in texts[-3:]] == [True] * 3
    assert tokenizer.encode("") == []


def test_the_commands_take_such_models(lmr: Callable[..., Said], gpt2_path: Path, checkpoint_path: Path) -> None:
    said = lmr("generate", f"hf:{gpt2_path}", "--prompt", "the river", "--greedy", "--format", "json", "-q")
    assert json.loads(said.stdout)[0]["generations"]["tiny-gpt2"]["text"]
    Path("text.txt").write_text("the river carries cold water 7.")
    said = lmr("perplexity", f"hf:{gpt2_path}", "text.txt", "--format", "json", "-q")
    assert json.loads(said.stdout)["perplexity"] > 1
    sources = (f"hf:{gpt2_path}", checkpoint_path)
    rows = json.loads(lmr("compare", *sources, "--text", "text.txt", "--format", "json", "-q").stdout)
    assert [row["type"] for row in rows] == ["gpt2", "lstm"]
    assert all(row["bits_per_byte"] > 0 and row["weights_bytes"] > 0 for row in rows)


def test_a_name_that_the_hub_cannot_provide_is_one_clear_line(
    lmr: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = lmr("generate", "hf:nobody/no-such-model", "--prompt", "the")
    assert said.code == 1
    assert said.stderr.startswith("Error: hf:nobody/no-such-model: no such folder, and the hub cannot provide it")
    assert "give the folder of a downloaded model" in said.stderr


def test_a_folder_that_is_no_causal_language_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a causal language model that transformers can read"):
        load_language_model(f"hf:{tmp_path / 'empty'}")
    save_tokenizer(tmp_path / "weightless")
    with pytest.raises(CheckpointError, match="not a causal language model"):
        load_language_model(f"hf:{tmp_path / 'weightless'}")


def test_pickled_weights_are_refused(gpt2: LoadedModel, gpt2_path: Path, tmp_path: Path) -> None:
    assert isinstance(gpt2.model, HfModel)
    for file in gpt2_path.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(gpt2.model.wrapped.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a causal language model"):
        load_language_model(f"hf:{tmp_path}")


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lm_retrieval\[hf\]"):
        load_language_model("hf:gpt2")


@pytest.mark.parametrize(
    ("source", "name"),
    [("hf:gpt2", "gpt2"), ("hf:openai-community/gpt2", "gpt2"), ("lstm-base", "lstm-base"), ("a/b/", "b")],
)
def test_the_name_of_a_model_that_was_given_none(source: str, name: str) -> None:
    assert default_name(source) == name
