"""The walk through `perdure config`, as a person types it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator

import orjson
import pytest

from config_manager.service import ConfigManager
from tests.config_support import PUT, following, manager
from tests.support import eventually

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
async def running(settings) -> AsyncIterator[ConfigManager]:
    async with manager(settings) as service:
        yield service


@pytest.fixture
def perdure(settings):
    """Run `perdure …` and return (exit code, standard output, standard error)."""

    async def run(*arguments: str, started=None) -> tuple[int, str, str]:
        environment = {**os.environ, "NATS_URL": settings.nats_url, "COLUMNS": "200", "NO_COLOR": "1", "USER": "eva"}
        environment |= {"LOGNAME": "eva", "PYTHONUNBUFFERED": "1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "perdure.cli.main",
            *arguments,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        if started is not None:
            return await started(process)
        out, err = await process.communicate()
        return process.returncode or 0, ANSI.sub("", out.decode()), ANSI.sub("", err.decode())

    return run


async def test_set_get_unset_history_and_rollback(running, perdure) -> None:
    code, out, err = await perdure("config", "set", "assistant", "agent_role=A pirate=yes", "max_iterations=7")
    assert (code, out, err) == (0, "assistant is at revision 1\n", "")
    assert await perdure("config", "get", "assistant", "agent_role") == (0, "A pirate=yes\n", "")
    code, out, _ = await perdure("config", "get", "assistant")
    assert (code, "assistant at revision 1" in out, "max_iterations" in out) == (0, True, True)
    code, out, _ = await perdure("config", "get", "assistant", "-o", "json")
    assert orjson.loads(out)["configurations"] == {"agent_role": "A pirate=yes", "max_iterations": "7"}
    assert (await perdure("config", "unset", "assistant", "max_iterations"))[0] == 0
    code, out, _ = await perdure("config", "get", "assistant", "--revision", "1", "-o", "json")
    assert orjson.loads(out)["configurations"]["max_iterations"] == "7"
    code, out, _ = await perdure("config", "history", "assistant")
    assert (code, "eva" in out, "agent_role" in out) == (0, True, True)
    code, out, _ = await perdure("config", "diff", "assistant", "1")
    assert (code, "max_iterations" in out, "agent_role" in out) == (1, True, False)
    code, out, _ = await perdure("config", "rollback", "assistant", "1")
    assert (code, "revision 3" in out) == (0, True)
    assert await perdure("config", "diff", "assistant", "1") == (0, "no difference\n", "")


async def test_export_and_import_round_trip_and_keep_comments(running, perdure, tmp_path) -> None:
    await perdure("config", "set", "*", "log_level=debug")
    await perdure("config", "set", "assistant", "max_iterations=7", 'tools_enabled=["a","b"]', "agent_role=line\nline")
    file = tmp_path / "config.yaml"
    assert (await perdure("config", "export", "--file", str(file)))[0] == 0
    text = file.read_text()
    assert text == (
        "agents:\n  '*':\n    log_level: debug\n  assistant:\n    agent_role: |-\n      line\n      line\n"
        "    max_iterations: 7\n    tools_enabled:\n    - a\n    - b\n"
    )
    file.write_text(text.replace("max_iterations: 7", "max_iterations: 8 # not more"))
    code, out, _ = await perdure("config", "import", str(file), "--dry-run")
    assert (code, "nothing was written" in out) == (0, True)
    assert await perdure("config", "get", "assistant", "max_iterations") == (0, "7\n", "")
    code, out, _ = await perdure("config", "import", str(file))
    assert (code, "assistant is at revision 3" in out) == (0, True)
    assert await perdure("config", "get", "assistant", "max_iterations") == (0, "8\n", "")
    assert await perdure("config", "import", str(file)) == (0, "nothing to change\n", "")
    await perdure("config", "set", "assistant", "agent_goal=new")
    await perdure("config", "export", "--file", str(file))
    assert "max_iterations: 8 # not more" in file.read_text()
    assert "agent_goal: new" in file.read_text()
    assert (await perdure("config", "diff", "assistant", "--file", str(file)))[0] == 0


async def test_errors_are_one_line_with_the_fix(running, perdure, tmp_path) -> None:
    for arguments, status, says in (
        (("get", "bad.name"), 1, "agent name"),
        (("get", "assistant", "nokey"), 1, "assistant has no nokey"),
        (("set", "assistant", "novalue"), 2, "is not key=value"),
        (("set", "assistant", "llm_api_key=sk-plain"), 1, "secret://env/NAME"),
        (("set", "assistant", "k=1", "--expected-revision", "0"), 0, ""),
        (("set", "assistant", "k=2", "--expected-revision", "0"), 1, "conflict"),
        (("rollback", "assistant", "99"), 1, "no revision 99"),
        (("import", str(tmp_path / "none.yaml")), 1, "cannot be read"),
        (("diff", "assistant"), 2, "one thing to compare"),
    ):
        code, _, err = await perdure("config", *arguments)
        assert (code, says in err) == (status, True), (arguments, err)
        assert "Traceback" not in err
    bad = tmp_path / "bad.yaml"
    for text, says in (("a: [", "is not YAML"), ("a: 1", "has no `agents:`"), ("agents: {x: {k: }}", "x.k")):
        bad.write_text(text)
        code, _, err = await perdure("config", "import", str(bad))
        assert (code, says in err) == (1, True), err


async def test_without_a_manager_the_error_says_so(perdure, settings) -> None:
    code, _, err = await perdure("config", "get", "assistant")
    assert (code, "perdure status" in err) == (1, True)


async def test_watch_shows_changes_and_what_became_of_them(running, perdure, settings, nc, redis, pool) -> None:
    async def watch(process):
        shown = []

        async def read() -> None:
            async for line in process.stdout:
                shown.append(ANSI.sub("", line.decode()))  # noqa: PERF401 - seen while it grows

        reading = asyncio.create_task(read())
        await eventually(lambda: any("watching" in line for line in shown), timeout=20)
        code, _, err = await perdure("config", "set", "assistant", "max_iterations=many", "agent_role=x")
        assert (code, "max_iterations must be a whole number" in err) == (1, True)
        code, _, err = await perdure("config", "set", "assistant", "max_iteration=5")
        assert (code, "did you mean max_iterations?" in err) == (0, True)
        await pool.execute(PUT, "assistant", "max_iterations", "many")
        await eventually(lambda: any("rejected" in line for line in shown))
        process.terminate()
        await process.wait()
        await reading
        return 0, "".join(shown), ""

    async with following(nc, redis, settings):
        _, out, _ = await perdure("config", "watch", "assistant", started=watch)
    assert "assistant revision 1 changed max_iteration" in out
    assert "must be a whole number" in out


@pytest.mark.parametrize(
    "command", ["", "get", "set", "unset", "history", "rollback", "diff", "export", "import", "rollout", "watch"]
)
async def test_help_teaches_by_example(perdure, command) -> None:
    code, out, _ = await perdure("config", *command.split(), "--help")
    assert code == 0
    assert f"perdure config {command}".strip() in out
