"""Runs jobs one after the other in the processes of torchrun: `torchrun … torchrun_worker.py jobs.json outcomes`.

A job is a list of arguments for `lmr`, or an object with `arguments` and `stop_after` steps. What became of each job is
written by every process to `outcomes-RANK.json`.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from lm_retrieval.cli import lmr
from lm_retrieval.cli import train as train_module
from lm_retrieval.cli import tune as tune_module
from lm_retrieval.errors import LmRetrievalError
from lm_retrieval.training.processes import process_group


def outcome(job: Any) -> str:
    arguments, limit = (job, None) if isinstance(job, list) else (job["arguments"], job["stop_after"])
    asked = iter(range(10_000))

    @contextmanager
    def stop_after() -> Iterator[Any]:
        yield lambda: limit is not None and next(asked) >= limit

    try:
        # undone at the end: tests call this in their own process too
        with (
            patch.object(train_module, "stop_on_signals", stop_after),
            patch.object(tune_module, "stop_on_signals", stop_after),
        ):
            lmr.main(args=arguments, prog_name="lmr", standalone_mode=False)
    except LmRetrievalError as error:
        return f"{type(error).__name__}: {error}"
    except SystemExit as ended:
        return f"exit {ended.code}"
    return "done"


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with process_group("cpu"):
        outcomes = [outcome(job) for job in jobs]
    Path(f"{sys.argv[2]}-{os.environ['RANK']}.json").write_text(json.dumps(outcomes))
