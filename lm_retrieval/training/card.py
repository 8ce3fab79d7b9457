"""The model card of a checkpoint folder."""

import json
from pathlib import Path

from lm_retrieval.artifacts import atomic_file
from lm_retrieval.config import RunConfig
from lm_retrieval.models import LanguageModel
from lm_retrieval.training.curves import CURVES_NAME


def write_card(
    output: Path, config: RunConfig, model: LanguageModel, summary: dict[str, object], *, what: str = "A language model"
) -> None:
    """`README.md` of the checkpoint: what it is and how to use it."""
    facts = {"model": config.model.type, "parameters": sum(model.parameter_counts().values()), **summary}
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in facts.items() if value is not None)
    with atomic_file(output / "README.md") as stream:
        stream.write(
            f"# {output.name}\n\n{what} trained with lm_retrieval.\n\n| | |\n|---|---|\n{rows}\n\n"
            f"![loss curve]({CURVES_NAME})\n\n```\nlmr generate {output.name} --prompt 'Once'\n"
            f"lmr embed CORPUS --encoder {output.name}\n```\n\nConfiguration:\n\n```json\n"
            f"{json.dumps(config.model_dump(mode='json'), indent=2)}\n```\n"
        )
