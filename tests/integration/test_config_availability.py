"""Configuration is readable while Postgres, or a ConfigManager, is away."""

from __future__ import annotations

from config_manager.service import ConfigManager
from perdure.config.keys import DurableAgentSettings
from perdure.config.schema import schema_of
from tests.config_support import PUT, ask, following, manager, messages
from tests.support import eventually


async def test_with_postgres_down_reads_are_answered_from_memory_as_stale_and_writes_refused(
    own_servers, own_postgres_settings, nc, pool
) -> None:
    async with manager(own_postgres_settings) as running:
        await pool.execute(PUT, "assistant", "k", "1")
        await eventually(lambda: running.table.revision == 1)
        pool.terminate()
        await own_servers.postgres.kill()
        await eventually(lambda: not running.sync.listening)
        reply = await ask(nc, "config.get.assistant")
        assert (reply["configurations"], reply["stale"]) == ({"k": "1"}, True)
        refused = await ask(nc, "config.set.assistant", {"configurations": {"k": "2"}}, timeout=15)
        assert refused["error"]["code"] == "unavailable"
        await own_servers.postgres.start()
        await eventually(lambda: running.sync.listening, timeout=20)
        assert "stale" not in await ask(nc, "config.get.assistant")


async def test_a_manager_that_starts_while_postgres_is_down_serves_the_copy_in_redis(
    own_servers, own_postgres_settings, nc, redis, pool
) -> None:
    updates = await messages(nc, "config.update")
    async with manager(own_postgres_settings) as first:
        await ask(nc, "config.schema.assistant", {"schema": schema_of(DurableAgentSettings)})
        await pool.execute(PUT, "assistant", "max_iterations", "5")
        await pool.execute(PUT, "assistant", "max_iterations", "many")
        await eventually(lambda: first.table.revision == 2)
        await first.copy.save()
    pool.terminate()
    await own_servers.postgres.stop()
    second = ConfigManager(own_postgres_settings)
    await second.start()
    try:
        reply = await ask(nc, "config.get.assistant")
        assert reply["stale"] is True
        assert (reply["configurations"], reply["revision"]) == ({"max_iterations": "5"}, 2)
        assert reply["held"]["max_iterations"]["value_revision"] == 1
        async with following(nc, redis, own_postgres_settings) as agent:
            assert agent.snapshot.get_setting("max_iterations") == 5
        await own_servers.postgres.start()
        await eventually(lambda: second.sync.listening, timeout=20)
        reply = await ask(nc, "config.set.assistant", {"configurations": {"max_iterations": 6}})
        assert (reply["status"], reply["revision"]) == ("success", 3)
        await eventually(lambda: updates[-1]["revision"] == 3)
    finally:
        await second.stop()
