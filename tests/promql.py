"""The metrics that an expression of Prometheus asks for, held against what the program tells."""

from __future__ import annotations

import re
from collections.abc import Iterator

from perdure.observe.catalogue import CATALOGUE

SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count"), "counter": ("",), "gauge": ("",)}
TOLD = {f"{name}{suffix}": metric for name, metric in CATALOGUE.items() for suffix in SUFFIXES[metric.kind]}
"""Each series that the program tells, and its metric."""
OF_THE_LIBRARY = {"up": {"part"}, "process_resident_memory_bytes": set(), "process_cpu_seconds_total": set()}
"""What Prometheus itself, and its client's collector of the process, add."""
TARGET = {"job", "instance", "part"}

_SERIES = re.compile(r"(?<![\w$])((?:perdure|process)_\w+|up)\b(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"\b(?:by|on|without|ignoring) \(([^)]*)\)")


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Each series that an expression asks for: its name and its matchers (label, operator, value)."""
    for name, selector in _SERIES.findall(_GROUPED.sub("", expression)):
        yield name, re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', selector)


def wrong(expression: str) -> Iterator[str]:
    """What an expression asks for that nobody tells; nothing when all of it is told."""
    labels, found = set(TARGET), 0
    for name, selector in _SERIES.findall(_GROUPED.sub("", expression)):
        found += 1
        if name in TOLD:
            mine = {*TOLD[name].labels, *(["le"] if name.endswith("_bucket") else [])}
        elif name in OF_THE_LIBRARY:
            mine = OF_THE_LIBRARY[name]
        else:
            yield f"nobody tells {name}"
            continue
        labels |= mine
        for label in set(re.findall(r"(\w+)\s*(?:=~?|!=|!~)", selector)) - mine - TARGET:
            yield f"{name} has no label {label}"
    for group in _GROUPED.findall(expression):
        for label in {each.strip() for each in group.split(",")} - labels:
            yield f"no metric of {expression} has the label {label}"
    if not found:
        yield f"{expression} asks for no metric"
