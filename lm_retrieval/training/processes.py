"""The processes of torchrun: who is first, on which device, and what they tell one another.

Process 0 alone reads text and writes files; the others are given what they need. An error of one ends all.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from lm_retrieval.config import TrainingConfig
from lm_retrieval.errors import ConfigError, PeerError
from lm_retrieval.runtime import local_devices

T = TypeVar("T")
# others wait while process 0 reads and tokenizes the corpus, which may take long
_PATIENCE = timedelta(hours=12)
_LOST = ("closed by peer", "reset by peer", "connection refused", "broken pipe", "gloo")


def rank() -> int:
    """The number of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def together() -> bool:
    """Whether this process has joined others."""
    return distributed.is_available() and distributed.is_initialized()


def local_device(names: str) -> torch.device:
    """This process's device.

    Args:
        names: `auto`, `cpu`, `cuda`, or one for each process of this machine, separated by commas.

    Raises:
        ConfigError: a device does not exist here, or there are more processes on this machine than devices.
    """
    places = local_devices("auto" if names == "cuda" and torch.cuda.is_available() else names)
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if places == ["cpu"]:
        return torch.device("cpu")
    if number >= len(places):
        raise ConfigError(
            f"more processes than devices on this machine ({', '.join(places)}); use --nproc-per-node={len(places)}"
        )
    return torch.device(places[number])


def check_rows(settings: TrainingConfig) -> None:
    """Raises ConfigError where the rows of a step cannot be shared out evenly."""
    parts = settings.accumulation_steps * world_size()
    if settings.batch_size % parts:
        raise ConfigError(
            f"training.batch_size {settings.batch_size} cannot be divided into {settings.accumulation_steps} "
            f"micro-batches on {world_size()} processes; choose a multiple of {parts}"
        )


def own_random_numbers(seed: int) -> None:
    """Lets dropout differ from process to process; process 0 goes on as it would alone."""
    if rank():
        torch.manual_seed(seed + (rank() << 32))


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Joins the processes of torchrun for as long as the outermost such block runs; alone it does nothing.

    Raises:
        ConfigError: more processes on this machine than GPUs.
        PeerError: another process has ended.
    """
    if world_size() == 1 or together():
        yield
        return
    mine = local_device(device)
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not any(sign in str(error).lower() for sign in _LOST):
            raise
        raise PeerError(
            "another process has ended; its own message, or what torchrun reports of it, says why"
        ) from error
    finally:
        distributed.destroy_process_group()


def shared(make: Callable[[], T]) -> T:
    """What process 0 makes, on every process; alone it is just made.

    Raises:
        PeerError: process 0 could not make it; there its own error is raised.
    """
    if not together():
        return make()
    if rank() == 0:
        try:
            made = make()
        except BaseException as error:
            _broadcast((None, str(error) or type(error).__name__))
            raise
        _broadcast((made, None))
        return made
    received, failure = _broadcast(None)
    if failure is not None:
        raise PeerError(f"process 0: {failure}")
    value: T = received
    return value


def in_turn(make: Callable[[], T]) -> T:
    """What each process makes for itself, process 0 first: an error that all would have is said once."""
    made: list[T] = []
    shared(lambda: made.append(make()))
    return made[0] if made else make()


def told(value: T) -> list[T]:
    """What every process says, in the order of their numbers."""
    if not together():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def told_numbers(values: Sequence[float]) -> list[list[float]]:
    """What every process says, in the order of their numbers; fast enough for every step."""
    mine = torch.tensor(values, dtype=torch.float64)
    if not together():
        return [mine.tolist()]
    everyone = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyone, mine)
    return [part.tolist() for part in everyone]


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if together():
        told_numbers([0.0])


def _broadcast(value: Any) -> Any:
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
