"""What a process counts: plain numbers where things happen, read together when somebody asks.

A part that counts has a method `readings`, which gives `(metric, values of its labels, value)` by the names of
`perdure.observe.catalogue`. Nothing here loads Prometheus' client: `perdure.observe.exporter` does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from perdure.observe.catalogue import CATALOGUE

FAST: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Bounds in seconds for what should take milliseconds."""
SLOW: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""Bounds in seconds for what may take long."""
OTHER: Final = "other"
MOST_LABELS: Final = 200


class Histogram:
    """Counts below bounds (seconds), and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Total:
    """How many, and their sum: for a summary."""

    __slots__ = ("count", "sum")

    def __init__(self, count: int, total: float) -> None:
        self.count = count
        self.sum = total


Value: TypeAlias = "float | Histogram | Total"
Reading: TypeAlias = "tuple[str, tuple[str, ...], Value]"
Source: TypeAlias = Callable[[], Iterable[Reading]]


class Metrics:
    """The sources of one process."""

    def __init__(self) -> None:
        self._sources: list[Source] = []

    def add(self, source: Source) -> None:
        """Ask `source` too, from now on."""
        self._sources.append(source)

    def remove(self, source: Source) -> None:
        """Ask `source` no longer."""
        if source in self._sources:
            self._sources.remove(source)

    def read(self) -> dict[str, dict[tuple[str, ...], Value]]:
        """Every reading, by metric and labels. Called in the event loop: what is read does not change meanwhile.

        Counts that several sources have for the same labels are added.
        """
        found: dict[str, dict[tuple[str, ...], Value]] = {}
        for source in self._sources:
            for name, labels, value in source():
                samples = found.setdefault(name, {})
                before = samples.get(labels)
                if isinstance(before, int | float) and isinstance(value, int | float):
                    samples[labels] = before + value if CATALOGUE[name].kind == "counter" else max(before, value)
                else:
                    samples[labels] = value
        return found


class Bounded(Counter[str]):
    """Counts by a label whose values others choose: past 200 of them, new ones count as `other`."""

    def add(self, label: str, count: int = 1) -> None:
        """Count."""
        self[label if label in self or len(self) < MOST_LABELS else OTHER] += count
