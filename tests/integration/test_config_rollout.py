"""A change tries itself on a few instances first, and goes on, or back, by itself, whatever is killed meanwhile."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from tests.config_support import PUT, ask, following, manager
from tests.support import eventually


@pytest.fixture
async def three(settings, nc, redis):
    """Three instances of one agent; their callback fails for the role `bad`."""

    async def on_change(_update, snapshot) -> None:
        if snapshot.get_setting("agent_role") == "bad":
            raise RuntimeError("does not work")

    async with AsyncExitStack() as stack:

        async def start():
            return [
                await stack.enter_async_context(
                    following(nc, redis, settings, instance_id=f"i-{number}", on_change=on_change)
                )
                for number in range(3)
            ]

        yield start


def roles(clients) -> list:
    return [client.snapshot.get_setting("agent_role") for client in clients]


async def ended(nc) -> dict:
    async def look():
        newest = (await ask(nc, "config.rollout.assistant", {"action": "status"}))["rollouts"][0]
        return newest if newest["state"] != "baking" else None

    return await eventually(look, timeout=20)


async def test_a_change_that_bakes_without_trouble_goes_to_all(settings, nc, pool, three) -> None:
    async with manager(settings):
        clients = await three()
        await pool.execute(PUT, "assistant", "agent_role", "old")
        await eventually(lambda: roles(clients) == ["old"] * 3)
        reply = await ask(
            nc,
            "config.rollout.assistant",
            {"configurations": {"agent_role": "new"}, "instances": 1, "bake_seconds": 1.0},
        )
        assert (reply["state"], reply["targets"]) == ("baking", ["i-0"])
        await eventually(lambda: roles(clients) == ["new", "old", "old"])
        second = await ask(nc, "config.rollout.assistant", {"configurations": {"agent_role": "x"}, "instances": 1})
        assert second["error"]["code"] == "conflict"
        end = await ended(nc)
        assert (end["state"], end["reason"]) == ("done", "baked on i-0")
        await eventually(lambda: roles(clients) == ["new"] * 3)
        layers = await pool.fetch("SELECT agent_name, config_value FROM agent_configurations")
        assert [tuple(row) for row in layers] == [("assistant", "new")]


async def test_a_change_that_an_instance_rejects_goes_back_by_itself(settings, nc, pool, three) -> None:
    async with manager(settings):
        clients = await three()
        await pool.execute(PUT, "assistant", "agent_role", "old")
        await pool.execute(PUT, "assistant@i-0", "agent_role", "its own")
        await eventually(lambda: roles(clients) == ["its own", "old", "old"])
        body = {"configurations": {"agent_role": "bad"}, "share": 0.5, "bake_seconds": 3600}
        reply = await ask(nc, "config.rollout.assistant", body)
        assert reply["targets"] == ["i-0", "i-1"]
        end = await ended(nc)
        assert (end["state"], "does not work" in end["reason"]) == ("rolled_back", True)
        await eventually(lambda: roles(clients) == ["its own", "old", "old"])


async def test_failed_runs_on_the_chosen_instances_take_it_back(settings, nc, pool, three) -> None:
    async with manager(settings):
        clients = await three()
        body = {"configurations": {"agent_role": "new"}, "instances": 1, "bake_seconds": 3600, "max_failures": 0}
        await ask(nc, "config.rollout.assistant", body)
        await eventually(lambda: roles(clients)[0] == "new")
        await pool.execute(
            "INSERT INTO processes (process_id, agent_name, instance_id, lock_key, postmaster_started, lease_until) "
            "VALUES ('p', 'assistant', 'i-0', 1, now(), now())"
        )
        await pool.execute(
            "INSERT INTO runs (run_id, agent_name, task, task_hash, status, process_id, finished_at) "
            "VALUES ('r', 'assistant', '{}', 'h', 'failed', 'p', now())"
        )
        end = await ended(nc)
        assert (end["state"], end["reason"]) == ("rolled_back", "1 runs failed on i-0")
        await eventually(lambda: roles(clients) == [None] * 3)


async def test_a_rollout_survives_the_manager_that_started_it(settings, nc, pool, three) -> None:
    async with manager(settings, instance_id="first"):
        clients = await three()
        body = {"configurations": {"agent_role": "new"}, "instances": 1, "bake_seconds": 0.5}
        await ask(nc, "config.rollout.assistant", body)
        await eventually(lambda: roles(clients)[0] == "new")
    async with manager(settings, instance_id="second"):
        assert (await ended(nc))["state"] == "done"
        await eventually(lambda: roles(clients) == ["new"] * 3)


async def test_somebody_elses_change_of_the_same_key_ends_it(settings, nc, pool, three) -> None:
    async with manager(settings):
        clients = await three()
        body = {"configurations": {"agent_role": "new"}, "instances": 1, "bake_seconds": 3600}
        await ask(nc, "config.rollout.assistant", body)
        await pool.execute(PUT, "assistant", "agent_role", "theirs")
        assert (await ended(nc))["state"] == "rolled_back"
        await eventually(lambda: roles(clients) == ["theirs"] * 3)


async def test_it_can_be_ended_by_hand_either_way(settings, nc, pool, three) -> None:
    async with manager(settings):
        clients = await three()
        body = {"configurations": {"agent_role": "new"}, "instances": 1, "bake_seconds": 3600}
        for action, state, role in (("abort", "aborted", None), ("promote", "done", "new")):
            await ask(nc, "config.rollout.assistant", body)
            await ask(nc, "config.rollout.assistant", {"action": action, "changed_by": "eva"})
            end = await ended(nc)
            assert (end["state"], end["reason"]) == (state, "by eva")
            await eventually(lambda role=role: roles(clients) == [role] * 3)
        again = await ask(nc, "config.rollout.assistant", {"action": "abort"})
        assert again["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"configurations": {"k": "1"}}, "invalid_request", "how many"),
        ({"configurations": {"k": "1"}, "instances": 1, "share": 0.5}, "invalid_request", "how many"),
        ({"configurations": {"k": None}, "instances": 1}, "invalid_request", "take keys away"),
        ({"configurations": {"k": "1"}, "share": 2}, "invalid_request", "share"),
        ({"configurations": {"k": "1"}, "instances": 1, "bake_seconds": -1}, "invalid_request", "bake_seconds"),
        ({"configurations": {"k": "1"}, "instances": 1}, "unavailable", "no instance"),
        ({"action": "dance"}, "invalid_request", "action"),
    ],
)
async def test_bad_requests_are_refused_and_write_nothing(settings, nc, pool, body, code, says) -> None:
    async with manager(settings):
        reply = await ask(nc, "config.rollout.nobody", body)
        assert (reply["error"]["code"], says in reply["error"]["message"]) == (code, True)
        assert await pool.fetchval("SELECT count(*) FROM config_history") == 0


async def test_a_change_that_nobody_chosen_applies_goes_back_after_a_while(
    settings, nc, redis, pool, monkeypatch
) -> None:
    monkeypatch.setattr("config_manager.rollout.PATIENCE", 0.5)
    async with manager(settings):
        async with following(nc, redis, settings, instance_id="i-0"):
            body = {"configurations": {"agent_role": "new"}, "instances": 1, "bake_seconds": 1.0}
            assert (await ask(nc, "config.rollout.assistant", body))["targets"] == ["i-0"]
        end = await ended(nc)
        assert (end["state"], end["reason"]) == ("rolled_back", "none of the chosen instances has applied it")
        assert await pool.fetch("SELECT FROM agent_configurations") == []
