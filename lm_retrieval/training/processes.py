"""The processes of torchrun: who is first, on which device, and waiting for one another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from lm_retrieval.runtime import resolve_device


def rank() -> int:
    """The number of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_device(name: str) -> torch.device:
    """This process's device."""
    device = resolve_device(name)
    if device.type != "cuda" or ":" in name:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Joins the processes of torchrun for as long as the block runs; alone it does nothing."""
    if world_size() == 1:
        yield
        return
    on_gpu = resolve_device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(local_device(device))
    # the others wait while process 0 reads and tokenizes the corpus, which may take long
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=12))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Lets process 0 through the block before the others."""
    if not torch.distributed.is_initialized():
        yield
        return
    if rank() != 0:
        torch.distributed.barrier()
    yield
    if rank() == 0:
        torch.distributed.barrier()
