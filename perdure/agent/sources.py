"""Tools that are only known once somebody else was asked: an MCP server, an OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol, runtime_checkable

import structlog

from perdure.agent.schema import SchemaSignature
from perdure.agent.tools import Tool, as_tools
from perdure.config.secrets import resolve_secret
from perdure.engine import Retry

LONGEST_DESCRIPTION: Final = 4_000
MOST_TOOLS: Final = 128
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_SECRET = re.compile(r"secret://(?:env|file)/\S+")

log = structlog.get_logger()


@runtime_checkable
class ToolSource(Protocol):
    """Gives tools while it runs; an agent starts and stops its sources with itself."""

    name: str

    async def start(self) -> None:
        """Begin to look; comes back when there are tools, or when waiting longer makes no sense."""
        ...

    async def stop(self) -> None:
        """Let go of everything."""
        ...

    def tools(self) -> Mapping[str, Tool]:
        """The tools that are known now."""
        ...


def described_tool(
    name: str,
    description: str,
    parameters: dict[str, Any],
    function: Callable[..., Any],
    *,
    requires_approval: bool = False,
    timeout: float | None = None,
    retry: Retry | None = None,
) -> Tool:
    """A tool from a JSON Schema; `function(arguments, step)` gets the arguments as an object."""
    return Tool(
        function,
        name=name,
        requires_approval=requires_approval,
        timeout=timeout,
        retry=retry,
        signature=SchemaSignature(description[:LONGEST_DESCRIPTION], parameters, {"step": "step"}),
    )


def tool_name(source: str, name: str) -> str:
    """A name that every model takes: `source_name`, at most 64 of `A-Za-z0-9_-`."""
    return _UNSAFE.sub("_", f"{source}_{name}")[:64]


def allowed(name: str, allow: Sequence[str] | None) -> bool:
    """Whether an allow-list (names or patterns such as `read_*`) lets a tool through; None lets all."""
    return allow is None or any(fnmatchcase(name, pattern) for pattern in allow)


async def resolve_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers in which `secret://…` stands for a secret, as in `Bearer secret://env/TOKEN`.

    Raises `SetupError` for a secret that is not there.
    """
    out: dict[str, str] = {}
    for key, value in headers.items():
        found = _SECRET.search(value)
        out[key] = value.replace(found.group(0), await resolve_secret(found.group(0))) if found else value
    return out


class Toolbox(Mapping[str, Tool]):
    """An agent's tools by name: its own, and what its sources know right now. An own tool hides one of a source."""

    def __init__(self, given: Sequence[Any]) -> None:
        self.sources: tuple[ToolSource, ...] = tuple(one for one in given if isinstance(one, ToolSource))
        self._own = as_tools([one for one in given if not isinstance(one, ToolSource)])

    @property
    def own(self) -> Mapping[str, Tool]:
        """The tools that do not come from a source: they are the same in every process."""
        return self._own

    def _all(self) -> Mapping[str, Tool]:
        if not self.sources:
            return self._own
        found: dict[str, Tool] = {}
        for source in self.sources:
            found.update(source.tools())
        return {**found, **self._own}

    def __getitem__(self, name: str) -> Tool:
        return self._all()[name]

    def __iter__(self) -> Any:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())
