"""Figures beside their goals: a table, and JSON."""

from __future__ import annotations

import os
import platform as machine
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent.parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure, and what it is to be at most."""

    what: str
    measured: float
    goal: float
    unit: str

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self.measured <= self.goal


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` percent of `values` do not exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def show(name: str, figures: Sequence[Figure]) -> None:
    """Print the table with the machine, and write `benchmarks/results/<name>.json`."""
    table = Table("what", "measured", "goal", "reached")
    for each in figures:
        table.add_row(
            each.what,
            f"{each.measured:,.1f} {each.unit}",
            f"{each.goal:,.0f} {each.unit}",
            "yes" if each.reached else "no",
        )
    about = {
        "machine": machine.platform(),
        "python": machine.python_version(),
        "cores": psutil.cpu_count(),
        "load": os.getloadavg()[0],
    }
    Console(width=120).print(table, about)
    RESULTS.mkdir(exist_ok=True)
    said = {**about, "figures": [{**asdict(each), "reached": each.reached} for each in figures]}
    (RESULTS / f"{name}.json").write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2))
