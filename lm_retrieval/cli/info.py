"""`lmr info` and `lmr quantize`."""

from pathlib import Path

import click

from lm_retrieval.cli.options import LOCATION, Command, echo_facts, echo_json, format_option, human_bytes
from lm_retrieval.storage import Location


@click.command(cls=Command)
@click.argument("path", type=LOCATION)
@format_option
def info(path: Location, output_format: str) -> None:
    """Say what a checkpoint, index or corpus is, from its manifest."""
    from lm_retrieval.artifacts import find_folder
    from lm_retrieval.inspection import describe

    if isinstance(path, Path) and not path.exists():
        homes = (Path("checkpoints"), Path("indexes"))
        path = next((found for home in homes if (found := find_folder(str(path), home))), path)
    facts = describe(path)
    if output_format == "json":
        echo_json(facts)
        return
    size = facts.pop("bytes")
    lines: list[tuple[str, object]] = []
    for name, value in facts.items():
        label = name.replace("_", " ")
        if isinstance(value, dict):
            shown = ", ".join(
                f"{key} {item:,}" if isinstance(item, int) else f"{key} {item}" for key, item in value.items()
            )
            lines.append((label, shown or None))
        elif isinstance(value, int) and not isinstance(value, bool) and not name.endswith("version"):
            lines.append((label, f"{value:,}"))
        else:
            lines.append((label, value))
    echo_facts([("path", path), *lines, ("size on disk", human_bytes(size))])


@click.command(cls=Command)
@click.argument("checkpoint")
@click.option("--output", type=LOCATION, required=True, help="The new checkpoint folder.")
def quantize(checkpoint: str, output: Location) -> None:
    """Store a checkpoint's weights in eight bits: half the size of the shipped ones, read by every command.

    \b
    Example:
      lmr quantize lstm-base --output checkpoints/lstm-int8
    """
    import torch

    from lm_retrieval.artifacts import folder_bytes
    from lm_retrieval.checkpoint import check_output, check_remote_output, find_checkpoint
    from lm_retrieval.encoding.encoder import Encoder
    from lm_retrieval.storage import open_output

    folder = find_checkpoint(checkpoint)
    check_remote_output(output, resumable=False)
    target = open_output(output)
    check_output(target.folder, resumable=False)
    Encoder.load(folder, device="cpu").save(target.folder, dtype=torch.int8)
    target.send()
    before, after = human_bytes(folder_bytes(folder)), human_bytes(folder_bytes(target.folder))
    click.echo(f"{output}: {after}, from {before}")
