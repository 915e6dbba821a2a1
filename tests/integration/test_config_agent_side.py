"""The agent's snapshot is whole, good and never goes back."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import orjson
import pytest
from pydantic import BaseModel, Field, model_validator

from perdure.config.client import ConfigClient
from perdure.errors import SetupError
from tests.config_support import PUT, following, manager, messages
from tests.support import eventually


class Limits(BaseModel):
    low: int = 1
    high: int = Field(10, le=100)
    names: list[str] = []

    @model_validator(mode="after")
    def in_order(self):
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


@asynccontextmanager
async def scripted_manager(nc, *, revision=1, **values):
    """Answers `config.get` from `state`, which the test changes; counts how often it was asked."""
    state = {"revision": revision, "values": values, "asked": 0, "extra": {}}

    async def answer(message) -> None:
        state["asked"] += 1
        reply = {"status": "success", "configurations": state["values"], "revision": state["revision"]}
        await message.respond(orjson.dumps(reply | state["extra"]))

    subscription = await nc.subscribe("config.get.*", cb=answer)
    yield state
    await subscription.unsubscribe()


async def say(nc, revision, agent="assistant", **more):
    body = {"agent_name": agent, "updated_keys": ["k"], "timestamp": 1.0, "revision": revision, **more}
    await nc.publish("config.update", orjson.dumps(body))
    await nc.flush()


async def test_a_bad_value_is_held_at_the_last_good_and_everything_else_applies(settings, nc, redis, pool) -> None:
    applied = await messages(nc, "config.applied.assistant")
    async with manager(settings), following(nc, redis, settings) as agent:
        await pool.execute(PUT, "assistant", "max_iterations", "5")
        await eventually(lambda: agent.snapshot.get_setting("max_iterations") == 5)
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(PUT, "assistant", "max_iterations", "many")
            await connection.execute(PUT, "assistant", "agent_role", "new")
        await eventually(lambda: agent.snapshot.get_setting("agent_role") == "new")
        assert agent.snapshot.get_setting("max_iterations") == 5
        assert "whole number" in agent.snapshot.held["max_iterations"]
        await eventually(lambda: applied[-1]["status"] == "rejected")
        assert "whole number" in applied[-1]["errors"]["max_iterations"]
        assert applied[-1]["revision"] == 2
        await pool.execute(PUT, "assistant", "agent_goal", "later changes apply")
        await eventually(lambda: agent.snapshot.get_setting("agent_goal") == "later changes apply")
        assert agent.snapshot.get_setting("max_iterations") == 5
        await pool.execute(PUT, "assistant", "max_iterations", "6")
        await eventually(lambda: agent.snapshot.get_setting("max_iterations") == 6)
        assert agent.snapshot.held == {}
        await eventually(lambda: applied[-1]["status"] == "applied")


async def test_a_held_value_outlives_a_restart_of_the_agent(settings, nc, redis, pool) -> None:
    async with manager(settings):
        async with following(nc, redis, settings) as agent:
            await pool.execute(PUT, "assistant", "max_iterations", "5")
            await eventually(lambda: agent.snapshot.get_setting("max_iterations") == 5)
            await eventually(lambda: redis.hget("perdure:config:lkg:assistant", "revision"))
            await pool.execute(PUT, "assistant", "max_iterations", "many")
            await eventually(lambda: agent.snapshot.revision == 2)
        async with following(nc, redis, settings) as agent:
            assert agent.snapshot.get_setting("max_iterations") == 5
            assert "max_iterations" in agent.snapshot.held


async def test_a_combination_that_the_settings_refuse_is_held_as_a_whole(settings, nc, redis) -> None:
    async with scripted_manager(nc, low="2", high="5") as state, following(nc, redis, settings, model=Limits) as agent:
        state |= {"values": {"low": "9", "high": "5", "note": "x"}, "revision": 2}
        await say(nc, 2)
        await eventually(lambda: agent.snapshot.revision == 2)
        assert agent.snapshot.typed() == {"low": 2, "high": 5, "names": [], "note": "x"}
        assert agent.snapshot.held == {"low": "low must not be above high"}
        state |= {"values": {"low": "9", "high": "12"}, "revision": 3}
        await say(nc, 3)
        await eventually(lambda: agent.snapshot.get_setting("high") == 12)
        assert agent.snapshot.held == {}


async def test_an_answer_from_before_is_passed_over(settings, nc, redis) -> None:
    async with scripted_manager(nc, revision=5, k="new") as state, following(nc, redis, settings) as agent:
        state |= {"revision": 4, "values": {"k": "old"}}  # another ConfigManager, that lags
        await say(nc, 6)
        await eventually(lambda: state["asked"] > 2)  # it asks again, until it gets what was broadcast
        assert agent.snapshot.get_setting("k") == "new"
        state |= {"revision": 6, "values": {"k": "newest"}}
        await eventually(lambda: agent.snapshot.get_setting("k") == "newest")


async def test_a_repeated_broadcast_is_not_read_again(settings, nc, redis) -> None:
    async with scripted_manager(nc, revision=5, k="v") as state, following(nc, redis, settings) as agent:
        for revision in (1, 4, 5, 5):
            await say(nc, revision)
        await say(nc, 6, "somebody-else")
        await say(nc, 6, instance_id="another-instance")
        state |= {"revision": 6}
        await say(nc, 6)
        await eventually(lambda: agent.snapshot.revision == 6)
        assert state["asked"] == 2


async def test_a_database_made_anew_counts_although_its_revisions_are_lower(settings, nc, redis) -> None:
    async with scripted_manager(nc, revision=50, k="old") as state, following(nc, redis, settings) as agent:
        state |= {"revision": 3, "values": {"k": "new"}, "extra": {"rewound": True}}
        await agent.reconcile()
        await eventually(lambda: agent.snapshot.revision == 3)
        assert agent.snapshot.get_setting("k") == "new"


async def test_without_a_manager_the_agent_starts_on_the_last_known_good_and_catches_up(
    settings, nc, redis, pool
) -> None:
    async with manager(settings), following(nc, redis, settings):
        await pool.execute(PUT, "assistant", "agent_role", "known")
        await eventually(lambda: redis.hget("perdure:config:lkg:assistant", "revision"))
        await eventually(lambda: _saved(redis, b"1"))
    changes = []

    async def on_change(update, _snapshot) -> None:
        changes.append(update.updated_keys)

    async with following(nc, redis, settings, on_change=on_change, patience=0.1) as agent:
        assert agent.snapshot.stale
        assert agent.snapshot.get_setting("agent_role") == "known"
        await pool.execute(PUT, "assistant", "agent_role", "newer")
        async with manager(settings):
            await eventually(lambda: agent.snapshot.get_setting("agent_role") == "newer")
            assert not agent.snapshot.stale
            await eventually(lambda: changes == [("agent_role",)])


async def _saved(redis, revision: bytes) -> bool:
    return await redis.hget("perdure:config:lkg:assistant", "revision") == revision


async def test_without_manager_or_redis_the_agent_starts_on_the_defaults_of_its_code(
    servers, settings, nc, redis
) -> None:
    await servers.redis.kill()
    async with following(nc, redis, settings, model=Limits, patience=0.1) as agent:
        assert agent.snapshot.stale
        assert agent.snapshot.get_setting("high") == 10


async def test_redis_being_down_slows_no_change(servers, settings, nc, redis, pool) -> None:
    async with manager(settings), following(nc, redis, settings) as agent:
        await servers.redis.kill()
        await pool.execute(PUT, "assistant", "k", "1")
        await eventually(lambda: agent.snapshot.get_setting("k") == "1")


async def test_a_failing_callback_is_told_and_the_snapshot_stays(settings, nc, redis, pool) -> None:
    applied = await messages(nc, "config.applied.assistant")

    async def on_change(_update, _snapshot) -> None:
        raise RuntimeError("cannot rebuild")

    async with manager(settings), following(nc, redis, settings, on_change=on_change) as agent:
        await pool.execute(PUT, "assistant", "k", "1")
        await eventually(lambda: len(applied) == 2)
        assert applied[1]["status"] == "applied"
        assert applied[1]["errors"] == {"_handle_config_update": "RuntimeError: cannot rebuild"}
        assert agent.snapshot.get_setting("k") == "1"


async def test_callbacks_run_one_at_a_time_and_not_for_what_changed_nothing(settings, nc, redis, pool) -> None:
    running, most, calls = 0, 0, []
    gate = asyncio.Event()

    async def on_change(update, snapshot) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        calls.append((update.agent_name, snapshot.revision))
        await gate.wait()
        running -= 1

    async with manager(settings), following(nc, redis, settings, on_change=on_change) as agent:
        await pool.execute(PUT, "assistant", "k", "1")
        await eventually(lambda: calls)
        await pool.execute(PUT, "assistant", "k", "2")
        await pool.execute(PUT, "*", "g", "3")
        await eventually(lambda: agent._wanted == 3)
        gate.set()
        await eventually(lambda: agent.snapshot.revision == 3)
        await pool.execute(PUT, "*", "k", "hidden by the agent's own row")
        await eventually(lambda: agent.snapshot.revision == 4)
        assert most == 1
        assert calls == [("assistant", 1), ("*", 3)]


async def test_a_field_without_default_and_without_row_is_said_at_the_start(settings, nc, redis) -> None:
    class Needs(BaseModel):
        region: str

    async with scripted_manager(nc):
        client = ConfigClient(
            nats=nc, redis=redis, settings=settings, agent_name="a", instance_id="i", settings_model=Needs
        )
        with pytest.raises(SetupError, match="region"):
            await client.start()


async def test_a_message_that_is_no_update_is_passed_over(settings, nc, redis) -> None:
    async with scripted_manager(nc, revision=1, k="1") as state, following(nc, redis, settings) as agent:
        for junk in (b"", b"{", b"[]", b'"x"', b'{"agent_name":"assistant"}', b'{"agent_name":1,"revision":[]}'):
            await nc.publish("config.update", junk)
        state |= {"revision": 2, "values": {"k": "2"}}
        await say(nc, 2)
        await eventually(lambda: agent.snapshot.get_setting("k") == "2")


async def test_a_restart_only_key_keeps_its_value_until_the_restart_and_says_so(settings, nc, redis, pool) -> None:
    class Own(BaseModel):
        port: int = Field(1, json_schema_extra={"live": False})
        role: str = ""

    applied = await messages(nc, "config.applied.assistant")
    async with manager(settings):
        async with following(nc, redis, settings, model=Own) as agent:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(PUT, "assistant", "port", "2")
                await connection.execute(PUT, "assistant", "role", "new")
            await eventually(lambda: agent.snapshot.get_setting("role") == "new")
            assert agent.snapshot.get_setting("port") == 1
            await eventually(lambda: applied[-1].get("restart") == ["port"])
        async with following(nc, redis, settings, model=Own) as agent:
            assert agent.snapshot.get_setting("port") == 2
