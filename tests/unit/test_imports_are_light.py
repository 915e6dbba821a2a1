"""`import perdure` costs nothing: what an agent needs is loaded when it is first asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What each line must not load; `import perdure` must load nothing that is not the standard library's.
HEAVY = (
    "openai",
    "mcp",
    "a2a",
    "httpx2",
    "fastapi",
    "starlette",
    "typer",
    "jsonschema",
    "ruamel",
    "consul",
    "uvloop",
    "opentelemetry",
    "prometheus_client",
)


def loaded_by(line: str) -> set[str]:
    """The top-level modules that are there after `line`, beyond those of an empty program."""
    code = f"import sys; before = set(sys.modules); {line}; print(*sorted(set(sys.modules) - before))"
    said = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    return {name.partition(".")[0] for name in said.split()}


def test_importing_the_package_loads_the_standard_library_and_itself_alone():
    assert loaded_by("import perdure") - sys.stdlib_module_names == {"perdure"}


@pytest.mark.parametrize(
    ("line", "beside"),
    [
        ("from perdure import DurableAgent, tool, Team", {"redis"}),
        ("from perdure import BaseAgent, workflow, on, cron", {"redis"}),
        ("from perdure import Client", {"redis", "asyncpg"}),
        ("from perdure import McpServer, Hooks", {"redis"}),
        ("from perdure.errors import PermanentError", {"pydantic", "nats", "asyncpg", "structlog"}),
    ],
)
def test_what_a_name_does_not_need_is_not_loaded_with_it(line, beside):
    assert loaded_by(line) & {*HEAVY, *beside} == set()
