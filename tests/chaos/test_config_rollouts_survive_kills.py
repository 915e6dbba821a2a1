"""A rollout whose ConfigManager is killed with -9 in the middle goes on, or back, in the hands of another one."""

from __future__ import annotations

import signal

import pytest

from tests.config_support import PUT, ask, following
from tests.processes import processes
from tests.support import eventually


@pytest.mark.parametrize(("role", "state"), [("new", "done"), ("bad", "rolled_back")])
async def test_a_killed_manager_leaves_its_rollout_to_the_next(
    settings, nc, redis, pool, tmp_path, role, state
) -> None:
    async def on_change(_update, snapshot) -> None:
        if snapshot.get_setting("agent_role") == "bad":
            raise RuntimeError("does not work")

    async def answers() -> bool:
        try:
            return (await ask(nc, "config.get.assistant", timeout=1))["status"] == "success"
        except Exception as error:
            raise AssertionError(type(error).__name__) from error

    async with processes(settings, tmp_path) as running:
        running.start("config_manager", "first")
        await eventually(answers, timeout=30)
        async with (
            following(nc, redis, settings, instance_id="i-0", on_change=on_change) as one,
            following(nc, redis, settings, instance_id="i-1", on_change=on_change) as two,
        ):

            def roles() -> list:
                return [each.snapshot.get_setting("agent_role") for each in (one, two)]

            await pool.execute(PUT, "assistant", "agent_role", "old")
            await eventually(lambda: roles() == ["old", "old"])
            # The one that started it dies at once: it has seen nothing of what came of it.
            change = {"configurations": {"agent_role": role}, "instances": 1, "bake_seconds": 1.0}
            started = await ask(nc, "config.rollout.assistant", change)
            running.children[0].send(signal.SIGKILL)
            assert (started["state"], started["targets"]) == ("baking", ["i-0"])
            assert await pool.fetchval("SELECT state FROM config_rollouts") == "baking"
            running.start("config_manager", "second")

            async def ended() -> bool:
                return await pool.fetchval("SELECT state FROM config_rollouts") == state

            await eventually(ended, timeout=30)
            expected = "new" if state == "done" else "old"
            await eventually(lambda: roles() == [expected, expected], timeout=20)
        rows = await pool.fetch("SELECT agent_name, config_value FROM agent_configurations")
        assert [tuple(row) for row in rows] == [("assistant", expected)]
