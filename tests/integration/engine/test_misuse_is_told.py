from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.client import Client
from perdure.engine import Context, Retry, workflow
from perdure.errors import StepFailed, WorkflowMisuse
from tests.engine_support import until
from tests.platform import in_process


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no word of it")


class Misusing(BaseAgent):
    name = "misusing"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        return await getattr(self, task["what"])(ctx)

    async def raw_task(self, ctx: Context) -> str:
        async def aside() -> None:
            await ctx.step("aside", self.echo, 1)

        try:
            await asyncio.create_task(aside())
        except WorkflowMisuse as error:
            return str(error)
        return "nothing was said"

    async def inside_a_step(self, ctx: Context) -> list[str]:
        async def step() -> None:
            await ctx.step("nested", self.echo, 1)

        def threaded() -> None:
            ctx.now()

        said = []
        for function in (step, threaded):
            try:
                await ctx.step("outer", function, retry=Retry(max_attempts=5, delay=60.0))
            except StepFailed as error:
                said.append(f"{error.attempts} {error.cause['type']}")
        try:
            await ctx.gather(ctx.step("outer", step))
        except StepFailed as error:
            said.append(f"{error.attempts} {error.cause['type']}")
        return said

    async def twice(self, ctx: Context) -> list[str]:
        said = []
        call = ctx.step("one", self.echo, 1)
        await call
        for awaitable in (lambda: call, lambda: ctx.gather(call), lambda: ctx.gather(asyncio.sleep)):
            try:
                await awaitable()
            except (WorkflowMisuse, TypeError) as error:
                said.append(type(error).__name__)
        other = ctx.step("two", self.echo, 2)

        async def branch() -> None:
            await other

        try:
            await ctx.gather(branch())
        except WorkflowMisuse as error:
            said.append(str(error)[:4])
        return said

    async def names(self, ctx: Context) -> list[str]:
        said = []
        for make in (
            lambda: ctx.step("a\x00b", self.echo, 1), lambda: ctx.step("", self.echo, 1),
            lambda: ctx.wait_signal("a\nb"), lambda: ctx.step("x" * 300, self.echo, 1),
            lambda: ctx.step("\ud800", self.echo, 1), lambda: ctx.step(5, self.echo), lambda: ctx.sleep("x", -1),
            lambda: ctx.sleep("x"), lambda: ctx.step("x", self.echo(1)), lambda: ctx.wait_signal("s", timeout="1"),
            lambda: ctx.call("a", 1, session_id="x y"), lambda: ctx.start("a", 1, workflow=5),
            lambda: ctx.map(self.echo, [1], concurrency="2"), lambda: ctx.step("x", self.echo, 1, retry=3),
        ):  # fmt: skip
            try:
                make()
            except (ValueError, TypeError) as error:
                said.append(type(error).__name__)
        return said

    async def events(self, ctx: Context) -> list[str]:
        said = []
        for make in (
            lambda: ctx.emit({}, type="run.completed"), lambda: ctx.emit({}, type="step.mine"),
            lambda: ctx.emit("word"), lambda: ctx.emit(None), lambda: ctx.emit({"a": object()}),
            lambda: ctx.emit({"fine": 1}, type='a "word"\\'),
        ):  # fmt: skip
            try:
                await make()
            except (ValueError, TypeError) as error:
                said.append(str(error))
        return said

    async def fails(self, ctx: Context) -> None:
        raise Unspeakable

    async def echo(self, value: Any) -> Any:
        return value


@pytest.mark.filterwarnings("ignore:coroutine 'Misusing.echo' was never awaited")
async def test_each_misuse_says_what_is_wrong_and_harms_nothing(settings, nc):
    run_ids: list[str] = []
    async with in_process(settings, nc, Misusing) as platform, Client(settings) as client:

        async def output(what: str) -> Any:
            run_id = await platform.start_run("misusing", {"what": what})
            run_ids.append(run_id)
            run = await until(platform, run_id, "completed", "failed", "needs_review")
            assert run["status"] == "completed", run["error"]
            return run["output"]

        assert "Use ctx.gather" in await output("raw_task")
        assert await output("inside_a_step") == ["1 WorkflowMisuse"] * 3
        assert await output("twice") == ["WorkflowMisuse", "WorkflowMisuse", "TypeError", "step"]
        value, kind = "ValueError", "TypeError"
        assert await output("names") == [value, value, value, value, value, kind, value, kind, kind, kind,
                                         value, kind, kind, kind]  # fmt: skip
        said = await output("events")
        assert ["one of the platform's own" in each for each in said[:2]] == [True, True]
        assert ["a mapping" in each for each in said[2:4]] == [True, True]
        assert said[4].startswith("event.data.a is a object")
        assert len(said) == 5
        odd = [event async for event in (await client.get(run_ids[-1])).events() if event["type"] == 'a "word"\\']
        assert [event["data"] for event in odd] == [{"fine": 1}], "any printable word is a type, as JSON has it"
        run_id = await platform.start_run("misusing", {"what": "fails"})
        run = await until(platform, run_id, "failed", "completed", "needs_review")
        assert (run["status"], run["error"]["type"]) == ("failed", "Unspeakable")
