from __future__ import annotations

from typing import Any

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from tests.engine_support import signal, until
from tests.platform import in_process


class Changing(BaseAgent):
    """Its code changes as `code` says, as a deployment would change it."""

    name = "changing"
    code = "first"

    @workflow
    async def run(self, ctx: Context, task: dict) -> str:
        code = type(self).code
        if code == "inserted":
            await ctx.step("check", self.echo, "c")
        if code == "patched" and ctx.patched("check"):
            await ctx.step("check", self.echo, "c")
        if code != "nothing":
            if code == "kind":
                await ctx.transaction("read", self.booked, "r")
            else:
                await ctx.step("read", self.echo, "other" if code == "arguments" else "r")
            await ctx.step("write", self.echo, "w")
            await ctx.wait_signal("go")
        return code

    async def echo(self, value: str) -> str:
        return value

    async def booked(self, _connection: Any, value: str) -> str:
        return value


async def test_each_kind_of_change_blocks_with_a_diff_and_fixed_code_goes_on(settings, nc, pool):
    async with in_process(settings, nc, Changing) as platform:
        run_id = await platform.start_run("changing", {})
        await until(platform, run_id, "waiting")
        before = await pool.fetch("SELECT * FROM journal ORDER BY seq")
        diffs = {
            "inserted": ("step 'read'", "step 'check'"),
            "arguments": ("step 'read'", "other arguments"),
            "kind": ("step 'read'", "transaction 'read'"),
            "nothing": ("step 'read'", "nothing more"),
        }
        try:
            Changing.code = "inserted"
            await signal(platform, run_id, "go")
            for code, (has, asked) in diffs.items():
                if code != Changing.code:
                    Changing.code = code
                    await platform.request("run.resume", {"run_id": run_id})
                run = await until(platform, run_id, "blocked")
                assert run["error"]["type"] == "ReplayMismatch"
                assert has in run["error"]["message"]
                assert asked in run["error"]["message"]
                assert run["error"]["journal"]["path"] == "1"
                assert await pool.fetch("SELECT * FROM journal ORDER BY seq") == before, "nothing is lost or added"
            Changing.code = "patched"
            await platform.request("run.resume", {"run_id": run_id})
            run = await until(platform, run_id, "completed")
            assert run["output"] == "patched"
            assert [step["name"] for step in run["steps"]] == ["read", "write", "go"]
            fresh = await platform.ask("changing", {}, timeout=1)
            assert fresh["status"] == "waiting"
            assert [s["name"] for s in (await platform.run(fresh["run_id"]))["steps"]] == [
                "check", "check", "read", "write",
            ]  # fmt: skip
        finally:
            Changing.code = "first"
