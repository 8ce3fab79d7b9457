"""What building an index did, and how long each stage of it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
        wall_seconds: time of everything; less than the sum of the stages, some of which run side by side.
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
    wall_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)


class Clock:
    """Adds up wall time by stage: `with clock("encode"): …`; stages may run side by side in threads."""

    def __init__(self, report: BuildReport) -> None:
        self._report = report

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: str, seconds: float) -> None:
        """Adds time that was measured elsewhere, perhaps by another process."""
        self._report.seconds[stage] = self._report.seconds.get(stage, 0.0) + seconds
        self._report.peak_memory_bytes[stage] = peak_memory_bytes()
