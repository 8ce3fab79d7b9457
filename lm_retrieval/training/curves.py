"""The loss curve of a run as a picture, drawn from its `metrics.jsonl`."""

import json
from pathlib import Path

from lm_retrieval.artifacts import atomic_file, storage_errors
from lm_retrieval.training.trainer import METRICS_NAME

CURVES_NAME = "loss.svg"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The records of a run, oldest first; empty where there are none."""
    path = folder / METRICS_NAME
    if not path.is_file():
        return []
    with storage_errors(path):
        lines = path.read_text(encoding="utf-8").split("\n")
    # a run that was killed, or a full disk, may have left half a line at the end
    return [json.loads(line) for line in lines if line.endswith("}")]


def draw_curves(folder: Path, *, label: str = "loss (nats per token)") -> None:
    """Writes `loss.svg`: training and held-out loss against tokens seen; `label` says what the loss is."""
    from matplotlib.figure import Figure

    records = read_metrics(folder)
    training = [(record["tokens"], record["loss"]) for record in records if "loss" in record]
    held_out = [(record["tokens"], record["validation_loss"]) for record in records if "validation_loss" in record]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    if training:
        axes.plot(*zip(*training, strict=True), color="#4c78a8", linewidth=1, alpha=0.8, label="training")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="#e45756", marker="o", markersize=3, label="held out")
    axes.set_xlabel("tokens seen")
    axes.set_ylabel(label)
    axes.set_title(folder.name)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e5 else f"{value:g}")
    axes.grid(alpha=0.25)
    if training or held_out:
        axes.legend()
    with atomic_file(folder / CURVES_NAME, "wb") as stream:
        figure.savefig(stream, format="svg", metadata={"Date": None})
