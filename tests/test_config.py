"""Settings: where a value comes from, and what a wrong one says."""

from pathlib import Path

import pytest

from lm_retrieval.config import (
    BigramConfig,
    EncoderConfig,
    GptConfig,
    LstmConfig,
    RunConfig,
    TransformerConfig,
    load_config,
    parse_config,
    parse_duration,
)
from lm_retrieval.errors import ConfigError

PRESETS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_every_value_is_the_default():
    assert load_config() == RunConfig()
    assert load_config().model == LstmConfig(embedding_dim=256, hidden_dim=256, num_layers=2, dropout=0.2)


def test_the_file_beats_the_defaults_and_overrides_beat_the_file(tmp_path):
    path = write(tmp_path, "[training]\nbatch_size = 7\nseed = 5\n[encoder]\npooling = 'max'\n")
    config = load_config(path, overrides=["training.seed=9", "tokenizer.vocab_size=300"])
    assert config.training.batch_size == 7  # file
    assert config.training.seed == 9  # override over file
    assert config.tokenizer.vocab_size == 300  # override over default
    assert config.encoder.pooling == "max"
    assert config.training.learning_rate == 2e-3  # default


def test_of_two_overrides_of_one_key_the_last_counts():
    assert load_config(overrides=["training.seed=2", "training.seed=3"]).training.seed == 3


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("training.learning_rate=1e-4", "training", "learning_rate", 1e-4),
        ("training.compile=true", "training", "compile", True),
        ("encoder.pooling=lasttoken", "encoder", "pooling", "lasttoken"),
        ("encoder.pooling='lasttoken'", "encoder", "pooling", "lasttoken"),
        (" training.sample_prompt = the cat = good ", "training", "sample_prompt", "the cat = good"),
    ],
)
def test_an_override_is_read_as_toml_or_else_as_text(override, section, name, value):
    assert getattr(getattr(load_config(overrides=[override]), section), name) == value


@pytest.mark.parametrize("override", ["seed=1", "training.seed", "training.=1", "training", "=1", ""])
def test_an_override_without_section_key_and_value_is_refused(override):
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(overrides=[override])


def test_an_override_into_something_that_is_no_section_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'training' is not a section"):
        load_config(write(tmp_path, "training = 3"), overrides=["training.seed=1"])


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("training.batchsize=3", "training.batchsize", "batch_size"),
        ("training.learning_rat=3", "training.learning_rat", "learning_rate"),
        ("trainig.seed=3", "trainig", "training"),
        ("model.hiden_dim=3", "model.hiden_dim", "hidden_dim"),
        ("tokenizer.vocabsize=3", "tokenizer.vocabsize", "vocab_size"),
        ("encoder.poolin='max'", "encoder.poolin", "pooling"),
    ],
)
def test_an_unknown_key_is_named_together_with_the_nearest_valid_one(override, key, nearest):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    assert f"unknown key '{key}'; did you mean '{nearest}'?" in str(caught.value)


def test_an_unknown_key_near_to_nothing_lists_the_known_ones():
    with pytest.raises(ConfigError, match="unknown key 'encoder.zzzzzz'; known keys: pooling, layers, postprocess"):
        load_config(overrides=["encoder.zzzzzz=1"])


@pytest.mark.parametrize(
    "override",
    [
        "training.batch_size=many",
        "training.batch_size=1.5",
        "training.batch_size=0",
        "training.batch_size=-4",
        "training.learning_rate=0",
        "training.learning_rate=nan",
        "training.precision=int8",
        "training.validation_fraction=0.5",
        "training.beta1=1",
        "model.dropout=1",
        "model.dropout=-0.1",
        "model.num_layers=[2]",
        "tokenizer.type=word",
        "encoder.normalize=maybe",
        "encoder.overlap_tokens=-1",
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_with_its_key_and_value(override):
    key, _, value = override.partition("=")
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    assert f"{key}: " in str(caught.value)
    assert f"(found {value}" in str(caught.value).replace("'", "")


def test_every_problem_of_a_file_is_reported_at_once_with_the_name_of_the_file(tmp_path):
    path = write(tmp_path, "[training]\nseed = -1\n[encoder]\nwindow = 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "training.seed" in str(caught.value)
    assert "unknown key 'encoder.window'" in str(caught.value)


@pytest.mark.parametrize("content", [b"[training\nseed = 1", b"a = ", b"\xff\xfe"])
def test_broken_toml_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml: cannot be read as TOML"):
        load_config(path)


def test_a_missing_file_is_an_error_that_points_to_the_presets(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: no such configuration file.*configs/"):
        load_config(tmp_path / "absent.toml")


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("lstm", LstmConfig()), ("transformer", TransformerConfig()), ("gpt", GptConfig()), ("bigram", BigramConfig())],
)
def test_the_type_of_the_model_chooses_its_section_and_defaults(kind, expected):
    config = parse_config({"model": {"type": kind}}, where="here")
    assert type(config.model) is type(expected)
    assert config.model == expected


def test_a_model_section_without_a_type_is_an_lstm():
    assert parse_config({"model": {"hidden_dim": 32}}, where="here").model == LstmConfig(hidden_dim=32)


def test_an_unknown_type_of_model_is_refused():
    with pytest.raises(ConfigError, match=r"^here: model: .*'transformer'"):
        parse_config({"model": {"type": "rnn"}}, where="here")


def test_a_key_of_another_model_is_refused():
    with pytest.raises(ConfigError, match=r"unknown key 'model\.num_heads'"):
        parse_config({"model": {"type": "lstm", "num_heads": 2}}, where="here")


def test_gpt_is_pre_norm_with_learned_positions_and_gelu():
    config = GptConfig()
    assert (config.norm, config.positions, config.activation) == ("pre", "learned", "gelu")


@pytest.mark.parametrize(("dim", "heads", "fits"), [(32, 4, True), (24, 4, True), (20, 4, False), (30, 4, False)])
def test_heads_must_divide_the_width_into_even_parts(dim, heads, fits):
    values = {"model": {"type": "transformer", "embedding_dim": dim, "num_heads": heads}}
    if fits:
        assert parse_config(values, where="here").model.num_heads == heads
    else:
        with pytest.raises(ConfigError, match=r"multiple of 2 \* num_heads"):
            parse_config(values, where="here")


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_tied_weights_may_have_another_width_than_the_model(kind):
    overrides = [f"model.type={kind}", "model.tie_weights=true", "model.embedding_dim=48", "model.hidden_dim=128"]
    model = load_config(overrides=overrides).model
    assert (model.tie_weights, model.embedding_dim, model.hidden_dim) == (True, 48, 128)


def test_overlap_may_be_half_of_the_window_and_no_more():
    assert EncoderConfig(max_length_tokens=64, overlap_tokens=32).overlap_tokens == 32
    with pytest.raises(ConfigError, match="at most half of max_length_tokens"):
        load_config(overrides=["encoder.max_length_tokens=64", "encoder.overlap_tokens=33"])


def test_sections_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().training.seed = 3


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_survives_a_round_trip_through_json(path):
    config = load_config(path)
    assert config != RunConfig()
    assert parse_config(config.model_dump(mode="json"), where="json") == config


def test_there_is_a_preset_for_every_type_of_model():
    assert {load_config(path).model.type for path in PRESETS} == {"lstm", "transformer", "gpt", "bigram"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), (" 2 m ", 120), ("0.5", 0.5)],
)
def test_a_duration_is_a_number_with_an_optional_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "5d", "-5", "0", "0.0h", "1e3", "5 m 3 s", "1,5h", ".5"])
def test_anything_else_is_not_a_duration(text):
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration(text)
