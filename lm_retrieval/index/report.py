"""What building an index did, and how long each stage of it took."""

import time
from dataclasses import dataclass, field

from lm_retrieval.index.calibration import Calibration
from lm_retrieval.runtime import peak_memory_bytes


@dataclass
class BuildReport:
    """What a build did.

    Attributes:
        tokens: of all chunks; overlapping ones count twice.
        encoded, reused, resumed: chunks that were encoded, taken from the earlier index, or found in a killed run.
        removed: documents of the earlier index that the corpus no longer has.
        split_documents: documents longer than one window, indexed as several chunks.
        seconds: time by stage.
        peak_memory_bytes: largest memory of the process up to the end of each stage's last use.
    """

    documents: int = 0
    chunks: int = 0
    tokens: int = 0
    empty_documents: int = 0
    split_documents: int = 0
    encoded: int = 0
    reused: int = 0
    resumed: int = 0
    removed: int = 0
    factory: str = ""
    recall_at_10: float | None = None
    calibration: Calibration | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)


class Clock:
    """Adds up wall time by stage: `with clock("encode"): …`."""

    def __init__(self, report: BuildReport) -> None:
        self._report, self._stage, self._started = report, "", 0.0

    def __call__(self, stage: str) -> "Clock":
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        elapsed = time.perf_counter() - self._started
        seconds = self._report.seconds
        seconds[self._stage] = seconds.get(self._stage, 0.0) + elapsed
        self._report.peak_memory_bytes[self._stage] = peak_memory_bytes()
