"""A change by SQL reaches every agent, whatever was down at the moment it was made."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import orjson
import pytest

from perdure.config.fetch import fetch
from perdure.store.postgres import Pool, connect_direct
from tests.config_support import PUT, ask, following, manager, messages
from tests.support import eventually

SLOW = {"config_poll_interval": 3600.0}  # nothing is found by polling: what arrives was told


async def test_an_update_by_sql_reaches_the_agent_whole_and_is_told(settings, nc, redis, pool: Pool) -> None:
    settings = settings.model_copy(update=SLOW)
    told = []

    async def on_change(update, snapshot) -> None:
        told.append((update.agent_name, update.updated_keys, update.revision, snapshot.revision))

    updates, applied = await messages(nc, "config.update"), await messages(nc, "config.applied.>")
    async with manager(settings), following(nc, redis, settings, on_change=on_change) as agent:
        assert agent.snapshot.revision == 0
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(PUT, "assistant", "agent_role", "a pirate")
            await connection.execute(PUT, "assistant", "max_iterations", "7")
        await eventually(lambda: agent.snapshot.revision == 1)
        assert agent.snapshot.get_setting("agent_role") == "a pirate"
        assert agent.snapshot.get_setting("max_iterations") == 7
        await eventually(lambda: len(applied) == 2)
        assert told == [("assistant", ("agent_role", "max_iterations"), 1, 1)]
    assert updates[0].pop("snapshot")["configurations"] == {"agent_role": "a pirate", "max_iterations": "7"}
    assert updates == [
        {
            "agent_name": "assistant",
            "updated_keys": ["agent_role", "max_iterations"],
            "timestamp": updates[0]["timestamp"],
            "revision": 1,
        }
    ]
    assert applied[1] == {
        "agent_name": "assistant",
        "instance_id": "i-1",
        "revision": 1,
        "status": "applied",
        "errors": {},
    }


async def test_a_global_change_is_broadcast_once_and_an_inactive_row_is_hidden(settings, nc, redis, pool) -> None:
    settings = settings.model_copy(update=SLOW)
    updates = await messages(nc, "config.update")
    async with manager(settings), following(nc, redis, settings) as one, following(nc, redis, settings, "b") as two:
        await pool.execute(PUT, "*", "agent_role", "from the global layer")
        await eventually(lambda: one.snapshot.revision == two.snapshot.revision == 1)
        await pool.execute(PUT, "b", "agent_role", "own")
        await eventually(lambda: two.snapshot.get_setting("agent_role") == "own")
        await pool.execute("UPDATE agent_configurations SET is_active = FALSE WHERE agent_name = 'b'")
        await eventually(lambda: two.snapshot.get_setting("agent_role") == "from the global layer")
        await pool.execute("DELETE FROM agent_configurations WHERE agent_name = '*'")
        await eventually(lambda: one.snapshot.get_setting("agent_role") is None)
        await eventually(lambda: len(updates) == 4)
    assert [(update["agent_name"], update["revision"]) for update in updates] == [
        ("*", 1),
        ("b", 2),
        ("b", 3),
        ("*", 4),
    ]


@pytest.fixture
def only_what_is_told(monkeypatch):
    """No comparison by the clock: what is found without being told of is found right after LISTEN."""
    monkeypatch.setattr("config_manager.sync.KEEP_ALIVE", 3600.0)
    monkeypatch.setattr("config_manager.sync.STANDBY_POLL", 3600.0)


async def test_changes_made_while_the_manager_was_stopped_are_broadcast_when_it_is_back(
    settings, nc, pool, only_what_is_told
) -> None:
    settings = settings.model_copy(update=SLOW)
    updates = await messages(nc, "config.update")
    async with manager(settings):
        await pool.execute(PUT, "assistant", "k", "1")
        await eventually(lambda: len(updates) == 1)
    await pool.execute(PUT, "assistant", "k", "2")
    await pool.execute(PUT, "other", "k", "3")
    async with manager(settings):
        await eventually(lambda: len(updates) == 3)
    assert [(update["agent_name"], update["revision"]) for update in updates] == [
        ("assistant", 1),
        ("assistant", 2),
        ("other", 3),
    ]


async def test_a_change_made_while_the_listen_connection_is_killed_is_broadcast(
    settings, nc, pool, only_what_is_told, monkeypatch
) -> None:
    settings = settings.model_copy(update=SLOW)
    may_connect = asyncio.Event()
    may_connect.set()

    async def connect_late(*arguments):
        await may_connect.wait()
        return await connect_direct(*arguments)

    monkeypatch.setattr("config_manager.sync.connect_direct", connect_late)
    updates = await messages(nc, "config.update")
    async with manager(settings) as running:
        await pool.execute(PUT, "assistant", "k", "0")
        await eventually(lambda: len(updates) == 1)
        may_connect.clear()
        killed = await pool.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE application_name = 'perdure config-manager listen' AND datname = current_database()"
        )
        assert killed == 1
        await eventually(lambda: not running.sync.listening)
        await pool.execute(PUT, "assistant", "k", "1")
        may_connect.set()
        await eventually(lambda: updates[-1]["revision"] == 2)


async def test_an_agent_finds_by_reading_what_it_was_never_told(settings, nc, redis, pool) -> None:
    quick = settings.model_copy(update={"config_poll_interval": 0.2})
    async with manager(settings), following(nc, redis, quick) as agent:
        await agent._subscription.unsubscribe()
        await pool.execute(PUT, "assistant", "k", "unheard")
        await eventually(lambda: agent.snapshot.get_setting("k") == "unheard")


async def test_a_reconnect_to_nats_makes_the_agent_read_again(settings, nc, redis, pool) -> None:
    settings = settings.model_copy(update=SLOW)
    async with manager(settings) as running, following(nc, redis, settings) as agent:
        await agent._subscription.unsubscribe()
        await pool.execute(PUT, "assistant", "k", "unheard")
        await eventually(lambda: running.table.revision == 1)
        await agent.reconcile()
        await eventually(lambda: agent.snapshot.get_setting("k") == "unheard")


async def test_a_value_of_a_megabyte_reaches_the_agent_in_parts(settings, nc, redis, pool) -> None:
    async with manager(settings), following(nc, redis, settings) as agent:
        await pool.execute(PUT, "assistant", "large", 'x"\\é' * 350_000)
        await eventually(lambda: len(agent.snapshot.get_setting("large", "")) == 1_400_000)
        refused = await ask(nc, "config.get.assistant")
        assert refused["error"]["code"] == "too_large"
        assert '{"part": 0}' in refused["error"]["message"]


async def test_a_burst_of_changes_ends_at_the_last_and_never_goes_back(settings, nc, redis, pool) -> None:
    settings = settings.model_copy(update=SLOW)
    seen = []

    async def on_change(_update, snapshot) -> None:
        seen.append((snapshot.revision, snapshot.get_setting("k", 0)))

    async with manager(settings), following(nc, redis, settings, on_change=on_change) as agent:
        for number in range(1, 301):
            await pool.execute(PUT, "assistant", "k", str(number))
        await eventually(lambda: agent.snapshot.get_setting("k", 0) == 300)
        await eventually(lambda: seen[-1] == (300, 300))
    assert seen == sorted(seen)


@pytest.mark.parametrize("instances", [2])
async def test_of_several_managers_all_answer_and_one_broadcasts(settings, nc, pool, instances) -> None:
    updates = await messages(nc, "config.update")
    async with manager(settings, instance_id="m-1") as one, manager(settings, instance_id="m-2") as two:
        await eventually(lambda: one.sync.leading or two.sync.leading)
        assert not (one.sync.leading and two.sync.leading)
        for number in range(20):
            await pool.execute(PUT, "assistant", "k", str(number))
        await eventually(lambda: len(updates) >= 20)
        await eventually(lambda: one.table.revision == two.table.revision == 20)
        assert [update["revision"] for update in updates] == list(range(1, 21))
        for each in (one, two):
            reply = await ask(nc, "config.get.assistant", {"min_revision": 20})
            assert reply["configurations"] == {"k": "19"}, each


async def test_another_manager_takes_over_and_loses_nothing(settings, nc, pool) -> None:
    updates = await messages(nc, "config.update")
    async with manager(settings, instance_id="m-2") as second:
        await eventually(lambda: second.sync.leading)
        async with manager(settings, instance_id="m-3") as third:
            await pool.execute(PUT, "assistant", "k", "1")
            await eventually(lambda: len(updates) == 1)
            assert not third.sync.leading
            await second.stop()
            await pool.execute(PUT, "assistant", "k", "2")
            await eventually(lambda: updates[-1]["revision"] == 2)
            await eventually(lambda: third.sync.leading)


async def test_a_broadcaster_that_holds_its_lock_but_does_not_move_is_helped(settings, nc, pool) -> None:
    updates = await messages(nc, "config.update")
    async with pool.acquire() as stopped:  # stands for a ConfigManager that got SIGSTOP
        assert await stopped.fetchval("SELECT pg_try_advisory_lock(70726475, 1)")
        async with manager(settings) as other:
            other.sync.patience, other.sync.standby_poll = 0.2, 0.05
            await pool.execute(PUT, "assistant", "k", "1")
            await eventually(lambda: updates and updates[-1]["revision"] == 1)
            assert not other.sync.leading


async def test_changes_made_while_nats_is_down_are_broadcast_when_it_is_back(servers, settings, nc, pool) -> None:
    updates = await messages(nc, "config.update")
    async with manager(settings):
        await servers.nats.kill()
        await pool.execute(PUT, "assistant", "k", "1")
        await servers.nats.start()
        await eventually(lambda: updates and updates[-1]["revision"] == 1, timeout=20)


async def test_a_small_configuration_travels_in_the_broadcast_and_nobody_asks_for_it(settings, nc, redis, pool) -> None:
    settings = settings.model_copy(update=SLOW)
    asked = []

    async def hear(message) -> None:
        asked.append(message.subject)

    async with manager(settings), following(nc, redis, settings) as agent:
        await nc.subscribe("config.get.>", cb=hear)
        await pool.execute(PUT, "assistant", "k", "1")
        await eventually(lambda: agent.snapshot.get_setting("k") == "1")
        await pool.execute(PUT, "assistant", "k", "x" * 20_000)
        await eventually(lambda: len(agent.snapshot.get_setting("k")) == 20_000)
        await pool.execute(PUT, "assistant@i-1", "k", "mine alone")
        await eventually(lambda: agent.snapshot.get_setting("k") == "mine alone")
    assert asked == ["config.get.assistant"] * 2


async def test_a_global_change_with_many_agents_asks_them_to_spread(settings, nc, pool) -> None:
    updates = await messages(nc, "config.update")
    async with manager(settings):
        await pool.execute(
            "INSERT INTO agent_configurations (agent_name, config_key, config_value) "
            "SELECT 'agent-' || n, 'k', 'v' FROM generate_series(1, 300) AS n"
        )
        await pool.execute(PUT, "*", "k", "1")
        await eventually(lambda: updates and updates[-1]["agent_name"] == "*")
    assert 0.05 < updates[-1]["spread"] < 0.5
    assert len(updates) == 301


async def test_a_herd_of_agents_asks_once_each_for_a_burst_and_not_in_one_moment(
    settings, nc, redis, pool, monkeypatch
) -> None:
    """Their configuration is too large for the broadcast: each has to ask."""
    agents = [f"agent-{number}" for number in range(80)]
    spreads: list[float] = []
    asked: list[str] = []

    def wait_for(low: float, high: float) -> float:
        if low == 0:
            spreads.append(high)
        return high

    async def hear(message) -> None:
        asked.append(message.subject)

    broadcasts: set[int] = set()
    all_heard = asyncio.Event()

    async def count(message) -> None:
        update = orjson.loads(message.data)
        if update["agent_name"] == "*":
            broadcasts.add(update["revision"])
        if len(broadcasts) == 20:
            all_heard.set()

    async def held_fetch(*arguments, **more):
        # However long the twenty commits take: a read that began with the first ends after the last.
        await all_heard.wait()
        return await fetch(*arguments, **more)

    async with manager(settings), AsyncExitStack() as stack:
        await pool.execute(
            "INSERT INTO agent_configurations (agent_name, config_key, config_value) "
            "SELECT agent, 'large', repeat('x', 20000) FROM unnest($1::text[]) AS agent",
            agents,
        )
        slow = settings.model_copy(update=SLOW)
        clients = [await stack.enter_async_context(following(nc, redis, slow, name, model=None)) for name in agents]
        monkeypatch.setattr("perdure.config.client.random.uniform", wait_for)
        monkeypatch.setattr("perdure.config.client.fetch", held_fetch)
        await nc.subscribe("config.get.>", cb=hear)
        await nc.subscribe("config.update", cb=count)
        async with pool.acquire() as connection:
            for number in range(20):
                await connection.execute(PUT, "*", "k", str(number))
        await eventually(lambda: all(client.snapshot.get_setting("k") == "19" for client in clients), timeout=20)
    # Twenty broadcasts: one read for those that came before it, and one for those that came during it.
    assert len(asked) <= 2 * len(agents)
    assert len(spreads) >= len(agents)
    assert all(spread == pytest.approx((len(agents) - 50 + 1) * 0.0005, abs=0.001) for spread in spreads)
