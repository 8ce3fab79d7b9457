"""The machine underneath: cores the container really has, device, dtype and seeds."""

import functools
import logging
import os
import queue
import random
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from lm_retrieval.errors import ConfigError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
THREADS_VARIABLE = "LMR_THREADS"
_LEAST_BUDGET = 64 << 20
_UNKNOWN_FREE = 8 << 30
_configured = False
T = TypeVar("T")


def available_cores() -> int:
    """Cores this process may use: CPU affinity, then the cgroup quota, whichever is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, _, period = quota_file.read_text().strip().partition(" ")
        if quota != "max" and period.isdigit():
            cores = min(cores, max(1, int(quota) // int(period)))
    return max(1, cores)


def thread_count(requested: int | None = None) -> int:
    """The number of threads to use: the argument, then LMR_THREADS, then every available core.

    The processes that torchrun starts on one machine share its cores.

    Raises:
        ConfigError: LMR_THREADS is not a positive whole number.
    """
    if requested is not None:
        return max(1, requested)
    value = os.environ.get(THREADS_VARIABLE)
    if value is None:
        return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"{THREADS_VARIABLE}={value}: a positive whole number of threads is needed")
    return int(value)


def configure_torch(threads: int | None = None) -> None:
    """Gives torch its threads; without a number only the first call does anything."""
    import torch

    global _configured
    if threads is not None or not _configured:
        torch.set_num_threads(thread_count(threads))
        _configured = True


def resolve_device(name: str = "auto") -> "torch.device":
    """`auto` is the first GPU where there is one, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}' is unknown; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device '{name}' is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device '{name}' is not available here; use --device cpu")
    return device


def local_devices(names: str = "auto") -> list[str]:
    """The devices of this machine to work on: `auto` is every GPU, or the CPU where there is none.

    Args:
        names: `auto`, or devices separated by commas, for example `cuda:0,cuda:1`.

    Raises:
        ConfigError: a device does not exist here.
    """
    import torch

    if names == "auto":
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    return [str(resolve_device(name.strip())) for name in names.split(",")]


def fast_bfloat16(device: "torch.device") -> bool:
    """True where matrix products in bfloat16 are faster than in float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def resolve_dtype(precision: Precision, device: "torch.device") -> "torch.dtype":
    """`auto`: bfloat16 where it is fast, float16 on GPUs without it, float32 elsewhere.

    Raises:
        ConfigError: float16 on a CPU, which has no fast path and in parts no path at all for it; int8, which models are
            stored in but do not compute in.
    """
    import torch

    if precision == "int8":
        raise ConfigError("models do not compute in int8; use auto, bfloat16 or float32")
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("float16 needs a GPU; on a CPU use bfloat16 or float32")
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if fast_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (all devices)."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that draw from the global generator
    torch.manual_seed(seed)


def memory_budget(limit_bytes: int | None = None) -> int:
    """Bytes that may still be taken.

    Args:
        limit_bytes: of the whole process; by default half of what the machine or container has free.
    """
    free = min(_free_memory())
    if limit_bytes is None:
        return free // 2
    left = limit_bytes - resident_bytes()
    if left < _LEAST_BUDGET:
        _say_too_little(limit_bytes)
    return max(_LEAST_BUDGET, min(left, free))


@functools.cache
def _say_too_little(limit_bytes: int) -> None:
    """Once for each limit."""
    needed = (resident_bytes() + _LEAST_BUDGET) / 1e6
    logger.warning("--max-memory %.0fMB cannot be kept: at least %.0fMB are needed here", limit_bytes / 1e6, needed)


def _free_memory() -> list[int]:
    """Bytes free on this machine and, where it says so, in this container."""
    found = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        found.append(max(0, limit - int(Path("/sys/fs/cgroup/memory.current").read_text())))
    return found or [_UNKNOWN_FREE]


def resident_bytes() -> int:
    """The resident size of this process, in bytes; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak_memory() -> None:
    """Lets `peak_memory_bytes` start anew from what is in use now, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The largest resident size this process has had, in bytes; on Linux since `reset_peak_memory`."""
    import resource
    import sys

    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items; a thread makes the next one while the caller works on this one.

    Raises whatever making an item raises, in its turn.
    """
    made: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(found: list[T], error: BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                made.put((found, error), timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put([item], None)
                if stopped.is_set():
                    return
            put([], None)
        except BaseException as error:
            put([], error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            found, error = made.get()
            if error is not None:
                raise error
            if not found:
                return
            yield found[0]
    finally:
        stopped.set()
