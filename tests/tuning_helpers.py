"""Tuning runs on the tiny corpus, and what they leave behind, for the test modules about tuning."""

import json
from pathlib import Path
from typing import Any

import torch

from lm_retrieval.checkpoint import Checkpoint
from lm_retrieval.config import RunConfig, load_config
from lm_retrieval.corpus import open_corpus
from lm_retrieval.tokenizer import Tokenizer
from lm_retrieval.training.curves import read_metrics
from lm_retrieval.training.pair_batches import TokenizedPairs
from lm_retrieval.training.trainer import TrainingResult
from lm_retrieval.tuning.material import Material, gather
from lm_retrieval.tuning.run import tune

SETTINGS = (
    "training.max_steps=12",
    "training.max_epochs=1000",
    "training.batch_size=16",
    "training.learning_rate=0.01",
    "training.warmup_steps=2",
    "training.weight_decay=0",
    "training.eval_interval_steps=5",
    "training.log_interval_steps=3",
    "training.precision=float32",
    "training.sample_tokens=0",
    "tuning.token_dropout=0.1",
    "tuning.token_learning_rate_ratio=5",
    "tuning.train_language_model=true",
    "tuning.spans_per_document=3",
)
SHORT = "tuning.max_length_tokens=64"  # the tiny Transformer reads no further


def config(*overrides: str) -> RunConfig:
    return load_config(overrides=[*SETTINGS, *overrides])


def run(corpus: Path, start: Path, output: Path, *overrides: str, **options: Any) -> TrainingResult:
    choices = {"config": config(*overrides), "output": output, "teacher": "none", **options}
    return tune(open_corpus(corpus), start=Checkpoint.load(start), **choices)


def material(corpus: Path, start: Path, *overrides: str, **options: Any) -> Material:
    choices = {"labels": None, "teacher": "none", "cache": corpus.parent / "cache", **options}
    return gather(open_corpus(corpus), Checkpoint.load(start), config(*overrides), **choices)


def texts_of(found: Material, start: Path, side: str) -> set[str]:
    tokenizer = Tokenizer.load(start / "tokenizer.model")
    parts: tuple[TokenizedPairs, ...] = (found.training, found.validation)
    return {tokenizer.decode(ids.tolist()) for part in parts for ids in getattr(part, side)}


def evaluations(folder: Path, name: str = "validation_loss") -> list[float]:
    return [record[name] for record in read_metrics(folder) if name in record]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    loaded = Checkpoint.load(folder)
    pooling = {} if loaded.pooling is None else dict(loaded.pooling.named_parameters())
    return dict(loaded.model.named_parameters()) | {f"pooling.{name}": tensor for name, tensor in pooling.items()}
