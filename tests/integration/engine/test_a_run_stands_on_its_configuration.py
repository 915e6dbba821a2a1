from __future__ import annotations

from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from tests.engine_support import at_rest, signal, until
from tests.platform import in_process
from tests.support import eventually


class Standing(BaseAgent):
    name = "standing"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        seen = [ctx.config.get_setting("word", "none")]
        await ctx.wait_signal("one")
        seen.append(ctx.config.get_setting("word", "none"))
        seen.append((await ctx.adopt_config()).get_setting("word", "none"))
        seen.append((await ctx.adopt_config()).get_setting("word", "none"))  # there is no newer one: no row
        await ctx.step("seen", self.echo, list(seen))
        await ctx.wait_signal("two")
        seen.append(ctx.config.get_setting("word", "none"))
        await ctx.step("seen", self.echo, list(seen))
        return seen

    async def echo(self, value: Any) -> Any:
        return value


async def say(platform, process, word: str) -> None:
    await platform.request("config.set.standing", {"configurations": {"word": word}})
    await eventually(lambda: process.newest().get_setting("word", "none") == word)


@pytest.mark.in_memory
async def test_a_run_sees_a_new_configuration_only_where_it_adopts_one_and_ever_after(settings, nc, pool):
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Standing)
        process.worker.linger = 30.0  # nothing is claimed while the configuration changes
        await say(platform, process, "first")
        run_id = await platform.start_run("standing", {})
        execution = await eventually(lambda: process.worker.executions.get(run_id))
        await say(platform, process, "second")
        await signal(platform, run_id, "one")
        await eventually(lambda: any(call.signal == "two" for call in execution.pending.values()))
        await say(platform, process, "third")
        other = await platform.agent(Standing)  # it has only ever seen the third
        platform.services.remove(process)
        await process.stop()
        await signal(platform, run_id, "two")
        run = await until(platform, run_id, "completed", "blocked", "failed")
        assert run["output"] == ["first", "first", "second", "second", "second"], run["error"]
        revisions = [step["config_revision"] for step in run["steps"]]
        assert revisions == sorted(revisions)
        assert len(set(revisions)) == 2
        assert run_id not in other.worker.executions
        snapshots = await pool.fetch("SELECT hash, values FROM config_snapshots WHERE agent_name = 'standing'")
        assert len(snapshots) >= 3


async def test_a_run_that_is_claimed_again_still_stands_on_what_it_began_with(settings, nc):
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Standing)
        await say(platform, process, "first")
        run_id = await platform.start_run("standing", {})
        await until(platform, run_id, "waiting")
        await at_rest(process)
        await say(platform, process, "second")
        await signal(platform, run_id, "one")
        await until(platform, run_id, "waiting")
        process.worker.linger = 30.0
        await say(platform, process, "third")
        await signal(platform, run_id, "unheard")
        await at_rest(process)
        await signal(platform, run_id, "two")
        run = await until(platform, run_id, "completed", "blocked")
        assert run["output"] == ["first", "first", "second", "second", "second"]
