"""Figures beside their goals: a table, and JSON."""

from __future__ import annotations

import os
import platform as machine
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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


def table_of(figures: Sequence[Figure]) -> Table:
    """Each figure beside its goal."""
    table = Table("what", "measured", "goal", "reached")
    for each in figures:
        table.add_row(
            each.what,
            f"{each.measured:,.{1 if each.goal >= 3 else 2}f} {each.unit}",
            f"{each.goal:,.{0 if each.goal >= 10 else 1}f} {each.unit}",
            "yes" if each.reached else "no",
        )
    return table


def for_json(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The same, as it is written down."""
    return [{**asdict(each), "reached": each.reached} for each in figures]


def show(name: str, figures: Sequence[Figure]) -> None:
    """Print the table with the machine, and write `benchmarks/results/<name>.json`."""
    about = {
        "machine": machine.platform(),
        "python": machine.python_version(),
        "cores": psutil.cpu_count(),
        "load": os.getloadavg()[0],
    }
    Console(width=120).print(table_of(figures), about)
    RESULTS.mkdir(exist_ok=True)
    said = {**about, "figures": for_json(figures)}
    (RESULTS / f"{name}.json").write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2))
