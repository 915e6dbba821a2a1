"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `area` and `check` name it, `said` is what was seen, `fix` what to do (empty when it is ok).

    An `error` is something that does not work, or that loses data; a `warning` works, and will not always.
    """

    area: str
    check: str
    status: Status
    said: str
    fix: str = ""


class Notes:
    """The findings of one area, as they are made."""

    def __init__(self, area: str) -> None:
        self.area = area
        self.findings: list[Finding] = []

    def ok(self, check: str, said: str) -> None:
        """It is as it should be."""
        self.findings.append(Finding(self.area, check, "ok", said))

    def warn(self, check: str, said: str, fix: str) -> None:
        """It works, and will not always."""
        self.findings.append(Finding(self.area, check, "warning", said, fix))

    def error(self, check: str, said: str, fix: str) -> None:
        """It does not work."""
        self.findings.append(Finding(self.area, check, "error", said, fix))

    def skip(self, check: str, said: str) -> None:
        """It could not be looked at, because of another finding."""
        self.findings.append(Finding(self.area, check, "skipped", said))


def split_advice(text: str) -> tuple[str, str]:
    """A sentence of ours that ends with its advice, as what was seen and what to do."""
    for mark in (". Check ", ". Make ", ". It ", "; run ", "; put ", ": start ", ": add "):
        said, found, fix = text.partition(mark)
        if found:
            fix = mark[2:] + fix
            return said, fix[0].upper() + fix[1:]
    return text, ""
