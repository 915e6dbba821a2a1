"""The walk through `perdure run`, `runs`, `chat` and `agents`, as a person types it."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, StepContext, workflow
from tests.platform import InProcess, in_process
from tests.support import eventually


class Clerk(BaseAgent):
    name = "clerk"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        await ctx.step("read", self.read)
        if task == "fail":
            await ctx.step("pay", self.pay, retry=Retry(max_attempts=1))
        if task == "wait":
            return await ctx.wait_signal("stamped")
        return {"task": task, "session": ctx.session_id}

    @workflow
    async def mother(self, ctx: Context, task: Any) -> Any:
        return await ctx.call("clerk", task, run_id=f"{ctx.run_id}-child")

    @workflow
    async def answer(self, ctx: Context, task: Any) -> Any:
        return f"you said {task}"

    async def read(self, step: StepContext) -> None:
        await step.progress(0.5, "reading")

    async def pay(self) -> None:
        raise ValueError("the till is empty")


class Echo(BaseAgent):
    name = "echo"

    @workflow
    async def run(self, ctx: Context, task: str) -> str:
        return await ctx.step("speak", self.speak, task)

    async def speak(self, task: str, step: StepContext) -> str:
        if task == "fail":
            raise ValueError("no voice")
        for word in ("you ", "said ", task):
            step.delta("llm.delta", {"text": word})
        return f"you said {task}"


class Perdure:
    """Runs the command in processes of their own."""

    def __init__(self, url: str) -> None:
        self.environment = {**os.environ, "NATS_URL": url, "COLUMNS": "250", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}

    async def spawn(self, *arguments: str, **more: Any) -> asyncio.subprocess.Process:
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        command = [sys.executable, "-m", "perdure.cli.main", *arguments]
        return await asyncio.create_subprocess_exec(*command, env=self.environment, **{**pipes, **more})

    async def __call__(self, *arguments: str, given: str = "") -> tuple[int, str, str]:
        process = await self.spawn(*arguments)
        out, err = await process.communicate(given.encode())
        return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
async def platform(settings, nc) -> AsyncIterator[InProcess]:
    async with in_process(settings, nc, Clerk, Echo) as running:
        yield running


@pytest.fixture
def perdure(settings) -> Perdure:
    return Perdure(settings.nats_url)


async def test_a_run_is_started_watched_and_shown(platform, perdure):
    code, out, err = await perdure("run", "clerk", '{"file": "may.csv"}', "--run-id", "may", "--session", "s1")
    assert (code, orjson.loads(out)) == (0, {"task": {"file": "may.csv"}, "session": "s1"})
    assert "✓ read" in err
    assert "reading 50%" in err
    code, out, err = await perdure("run", "clerk", "{half", "-o", "json")
    assert (code, orjson.loads(out)["output"]["task"]) == (0, "{half")
    assert "looks like JSON and is not" in err
    code, out, _ = await perdure("runs", "list", "--session", "s1")
    assert code == 0
    assert "may" in out
    assert "completed" in out
    code, out, _ = await perdure("runs", "list", "-n", "1", "-o", "json")
    listed = orjson.loads(out)
    assert len(listed["runs"]) == 1
    code, out, _ = await perdure("runs", "list", "--cursor", listed["next_cursor"], "-o", "json")
    assert [run["run_id"] for run in orjson.loads(out)["runs"]] == ["may"]


async def test_a_run_that_fails_is_one_red_line_with_advice_and_exit_code_1(platform, perdure):
    code, out, err = await perdure("run", "clerk", "fail", "--run-id", "bad")
    assert (code, out) == (1, "")
    assert "✗ pay: the till is empty" in err
    assert "error (run_failed): run bad ended failed" in err
    assert "`perdure runs resume bad`" in err
    assert "Traceback" not in err
    code, out, _ = await perdure("runs", "show", "bad")
    assert code == 0
    for expected in ("failed", "pay", "ValueError: the till is empty", '"fail"'):
        assert expected in out
    code, out, _ = await perdure("runs", "fork", "bad", "pay", "-o", "json")
    assert (code, orjson.loads(out)["run_id"] != "bad") == (0, True)
    code, _, err = await perdure("runs", "resume", "bad", "--wait")
    assert (code, "the till is empty" in err) == (1, True)


async def test_a_waiting_run_is_signalled_and_another_cancelled(platform, perdure):
    code, out, err = await perdure("run", "clerk", "wait", "--detach", "--run-id", "one")
    assert (code, out) == (0, "one\n")
    assert "perdure runs show one" in err
    await eventually(lambda: has_status(platform, "one", "waiting"))
    code, out, _ = await perdure("runs", "show", "one")
    assert (code, "signal stamped" in out) == (0, True)
    code, _, err = await perdure("runs", "signal", "one", "stamped", '{"by": "eva"}', "--id", "x")
    assert (code, "sent stamped" in err) == (0, True)
    await eventually(lambda: has_status(platform, "one", "completed"))
    code, out, _ = await perdure("runs", "show", "one", "-o", "json")
    assert orjson.loads(out)["output"] == {"by": "eva"}
    for run_id in ("three", "four"):
        await perdure("run", "clerk", "wait", "--detach", "--run-id", run_id)
        await eventually(lambda run_id=run_id: has_status(platform, run_id, "waiting"))
    code, _, err = await perdure("runs", "signal", "stamped", '"all"', "--agent", "clerk", "-s", "waiting", "--yes")
    assert (code, "signalled: 2 of 2" in err) == (0, True)
    for run_id in ("three", "four"):
        await eventually(lambda run_id=run_id: has_status(platform, run_id, "completed"))
    code, _, err = await perdure("runs", "signal", "stamped")
    assert (code, "RUN_ID NAME [PAYLOAD]" in err) == (2, True)
    await perdure("run", "clerk", "wait", "--detach", "--run-id", "two", "-o", "json")
    code, out, _ = await perdure("runs", "cancel", "two", "--reason", "no more", "-o", "json")
    assert code == 0
    await eventually(lambda: has_status(platform, "two", "cancelled"))


async def test_the_children_of_a_run_are_a_tree(platform, perdure):
    assert (await perdure("run", "clerk", "7", "-w", "mother", "--run-id", "m"))[0] == 0
    _, out, _ = await perdure("runs", "show", "m")
    assert "children" in out
    assert "completed clerk m-child" in out
    _, out, _ = await perdure("runs", "show", "m", "-o", "json")
    assert [child["run_id"] for child in orjson.loads(out)["children"]] == ["m-child"]


async def test_ctrl_c_leaves_the_run_running_and_says_how_to_look(platform, perdure):
    process = await perdure.spawn("run", "clerk", "wait", "--run-id", "long")
    await eventually(lambda: has_status(platform, "long", "waiting"), timeout=30)
    assert process.stderr is not None
    seen = await process.stderr.readuntil("✓ read".encode())
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert "run long goes on. `perdure runs show long`" in (seen + err).decode()
    assert await has_status(platform, "long", "waiting")


async def test_a_wait_that_is_over_says_that_the_run_goes_on(platform, perdure):
    code, _, err = await perdure("run", "clerk", "wait", "--timeout", "0.2", "--run-id", "slow")
    assert code == 1
    assert "run slow has not ended within 0.2 s; it goes on. `perdure runs show slow`" in err


async def test_an_unknown_agent_is_said_and_its_run_is_kept(platform, perdure):
    code, out, err = await perdure("run", "nobody", "hello", "--detach", "--run-id", "early")
    assert (code, out) == (0, "early\n")
    assert "no replica of nobody is registered: run early stays pending" in err
    assert await has_status(platform, "early", "pending")
    _, _, err = await perdure("runs", "show", "early")
    assert "no replica of nobody is registered" in err
    code, out, _ = await perdure("agents", "list")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "absent" in lines["nobody"]
    assert "1 run waits" in lines["nobody"]
    assert "revision 0" in lines["clerk"]
    code, out, _ = await perdure("agents", "list", "-o", "json")
    replicas = {replica["agent"]: replica for replica in orjson.loads(out)["replicas"]}
    assert set(replicas) == {"clerk", "echo"}
    assert replicas["clerk"]["config_revision"] == 0
    assert replicas["clerk"]["health"] in ("ok", "warning")
    assert orjson.loads(out)["absent"] == {"nobody": 1}


async def test_bad_input_is_one_clear_line(platform, perdure):
    for arguments, code, said in (
        (("runs", "show", "nothing"), 1, "there is no run 'nothing'. `perdure runs list` shows the runs there are"),
        (("runs", "cancel", "nothing"), 1, "there is no run 'nothing'"),
        (("runs", "show", "no spaces"), 2, "run_id 'no spaces' is not usable"),
        (("run", "clerk", "x", "--run-id", "a/b"), 2, "run_id 'a/b' is not usable"),
        (("run", "a!", "x"), 2, "agent name 'a!' is not usable"),
        (("runs", "list", "--cursor", "x"), 2, "next_cursor"),
    ):
        found, out, err = await perdure(*arguments)
        assert (found, out) == (code, "")
        assert said in err
        assert "Traceback" not in err


async def test_the_same_id_with_another_task_is_a_conflict_with_advice(platform, perdure):
    await perdure("run", "clerk", "1", "--run-id", "same")
    code, _, err = await perdure("run", "clerk", "2", "--run-id", "same")
    assert code == 1
    assert "error (conflict): there is a run 'same' with another task" in err
    assert "Choose another --run-id" in err


async def test_a_platform_that_is_not_there_is_an_error_with_a_fix(perdure):
    code, _, err = await perdure("run", "clerk", "x")
    assert code == 1
    assert "nobody answers run.start.clerk" in err
    perdure.environment["NATS_URL"] = "nats://127.0.0.1:9"
    code, _, err = await perdure("agents", "list")
    assert code == 1
    assert "start the platform with `perdure up`" in err


async def test_a_chat_over_a_pipe_answers_each_line(platform, perdure, pool):
    given = "hello\n\n/reset\nagain"
    code, out, err = await perdure("chat", "echo", "--session", "talk", given=given)
    assert (code, out) == (0, "you said hello\nyou said again\n")
    assert "/reset is no command" in err
    sessions = await pool.fetch("SELECT session_id FROM runs")
    assert [record["session_id"] for record in sessions] == ["talk", "talk"]
    code, out, err = await perdure("chat", "echo", given="fail\nhello\n/quit\nnever")
    assert (code, out) == (1, "you said hello\n")
    assert "no voice" in err


async def test_a_chat_in_a_terminal_prompts_and_shows_the_answer_once(platform, perdure):
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    process = await perdure.spawn("chat", "echo", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen = bytearray()

    def shows(text: str, times: int = 1) -> bool:
        try:
            while chunk := os.read(ours, 65536):
                screen.extend(chunk)
        except OSError:
            pass  # nothing more at the moment, or the other side is closed
        return screen.decode(errors="replace").count(text) >= times

    await eventually(lambda: shows("you>"), timeout=30)
    os.write(ours, b"hello\n")
    await eventually(lambda: shows("you>", 2), timeout=30)
    assert screen.count(b"you said hello") == 1
    os.write(ours, b"\x04")
    assert await process.wait() == 0
    os.close(ours)


async def has_status(platform: InProcess, run_id: str, status: str) -> bool:
    found = await platform.request("run.list", {"limit": 100})
    return {run["run_id"]: run["status"] for run in found["runs"]}.get(run_id) == status
