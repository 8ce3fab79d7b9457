"""`lmr bench`: counted operations, figures that hang together, errors; and peak memory that starts anew."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Said, make_texts

from lm_retrieval.config import LstmConfig, TransformerConfig
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CorpusError
from lm_retrieval.models import build_model
from lm_retrieval.runtime import peak_memory_bytes, reset_peak_memory
from lm_retrieval.speed import measure_speed


def test_operations_of_an_lstm_are_those_of_its_gates() -> None:
    model = build_model(LstmConfig(embedding_dim=4, hidden_dim=6, num_layers=2), vocab_size=50)
    gates = 4 * 6 * (4 + 6) + 4 * 6 * (6 + 6)
    assert model.encoding_flops([3, 5]) == 2 * gates * 8


def test_operations_of_a_transformer_are_its_products_and_its_attention_to_the_past() -> None:
    config = TransformerConfig(embedding_dim=8, num_layers=2, num_heads=2, feedforward_dim=16, max_length=32)
    model = build_model(config, vocab_size=50)
    block = 8 * 24 + 8 * 8 + 8 * 16 + 16 * 8
    pairs = 3 * 4 // 2 + 5 * 6 // 2
    assert model.encoding_flops([3, 5]) == 2 * 2 * block * 8 + 2 * 2 * 2 * 8 * pairs


def test_figures_hang_together(encoder: Encoder) -> None:
    texts = make_texts(40)
    found = measure_speed(encoder, texts=texts, seconds=0.01)
    tokens = sum(len(encoder.tokenizer.encode(text)) for text in texts)
    assert found.texts == 40
    assert found.rounds >= 1
    assert found.mean_tokens == pytest.approx(tokens / 40)
    assert found.tokens_per_second == pytest.approx(found.texts_per_second * found.mean_tokens)
    assert 0 < found.tokenizing_share < 1
    assert 0 < found.share_of_peak < 1
    assert 0 < found.latency_p50_ms <= found.latency_p95_ms


def test_no_text_is_an_error(encoder: Encoder) -> None:
    with pytest.raises(CorpusError, match="no text to measure with"):
        measure_speed(encoder, texts=["", " "], seconds=0.01)


def test_the_command_prints_what_was_measured(
    lmr: Callable[..., Said], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text(" ".join(make_texts(5)))
    arguments = ("bench", str(make_checkpoint("lstm")), "--corpus", "notes", "--seconds", "0.01", "-q")
    found = json.loads(lmr(*arguments, "--dtype", "float32", "--format", "json").stdout)
    assert (found["texts"], found["dtype"]) == (1, "float32")
    said = lmr(*arguments)
    assert [line.split("  ")[0] for line in said.stdout.splitlines()][2:4] == ["texts/s", "tokens/s"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets the peak start anew")
def test_peak_memory_starts_anew() -> None:
    held = np.ones(40_000_000)
    high = peak_memory_bytes()
    del held
    reset_peak_memory()
    assert peak_memory_bytes() < high - 200_000_000
