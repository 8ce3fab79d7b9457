"""Training on several devices of this machine: the same command again, in a process for each."""

import logging
import os
import sys
import uuid
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lm_retrieval.config import RunConfig

_SAVING_SECONDS = 120
_LOGGERS = ("torch.distributed", "torch.distributed.elastic.agent.server.api")


def train_on_all(devices: str, settings: Callable[[], "RunConfig"]) -> None:
    """Starts the command once for each device, waits for all and ends the program; for one device it just returns.

    It also returns in a process that was started so, by this or by torchrun. Devices that were not chosen are all that
    the rows of a step can be shared out among.

    Args:
        devices: `auto`, or devices separated by commas.
        settings: reads the configuration; called for `auto` alone.

    Raises:
        ConfigError: a device does not exist here.
    """
    from lm_retrieval.runtime import local_devices

    if "WORLD_SIZE" in os.environ:
        return
    places = local_devices(devices)
    if devices == "auto":
        training = settings().training
        rows = training.batch_size // training.accumulation_steps
        places = places[: next(count for count in range(len(places), 0, -1) if rows % count == 0)]
    if len(places) > 1:
        arguments: list[str] = click.get_current_context().obj
        sys.exit(_launch([*arguments, "--devices", ",".join(places)], processes=len(places)))


def _launch(arguments: list[str], *, processes: int) -> int:
    """The exit code of the first process that failed; 0 where none did."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes say what is wrong themselves
    with TemporaryDirectory(prefix="lmr-launch-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            shutdown_timeout=_SAVING_SECONDS,  # a signal is handed on, and they save
        )
        try:
            elastic_launch(config, sys.executable)("-m", "lm_retrieval", *arguments)
        except ChildFailedError as error:
            number, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                return failure.exitcode
            ended = f"process {number} was ended by signal {-failure.exitcode} (out of memory?)"
            click.echo(f"Error: {ended}; what was saved is kept: add --resume to go on", err=True)
            return 1
        except SignalException:
            return 130
    return 0
