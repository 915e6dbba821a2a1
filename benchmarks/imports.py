"""`python -m benchmarks.imports`: what an import takes, as the median of fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

TIMES = 9
LINES = (
    "pass",
    "import perdure",
    "from perdure import BaseAgent, workflow",
    "from perdure import DurableAgent, tool",
    "from perdure import Client",
    "from perdure import AgentRunner",
)
CODE = """
import resource, sys, time
began = time.perf_counter()
{line}
took = time.perf_counter() - began
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(sys.modules))
"""


def measured(line: str) -> list[float]:
    """Medians: seconds, MiB at most, modules."""
    rows = []
    for _ in range(TIMES):
        said = subprocess.run([sys.executable, "-c", CODE.format(line=line)], capture_output=True, check=True)
        rows.append([float(one) for one in said.stdout.split()])
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def main() -> None:
    table = Table("line", "seconds", "MiB", "modules", box=None)
    for line in LINES:
        seconds, size, modules = measured(line)
        table.add_row(line, f"{seconds:.3f}", f"{size:.0f}", f"{modules:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
