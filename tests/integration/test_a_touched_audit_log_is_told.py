"""The services read their chains again: what was touched is told by itself, and is over when it is as it was."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from config_manager.service import ConfigManager
from perdure.store.audit_seals import Sealer
from perdure.store.audit_watch import AuditWatch
from perdure.store.roles import apply_roles
from services.scheduler.service import Scheduler
from tests.integration.test_postgres_refuses_what_a_part_does_not_need import place_of
from tests.platform import InProcess
from tests.support import eventually

ROW = {"acts": ("audit_log", "actor", "audit_id"), "configuration": ("config_history", "changed_by", "revision")}


@asynccontextmanager
async def touched(pool, chain):
    """The first row says another name, as somebody can make it who may do everything; then it is as it was."""
    table, column, key = ROW[chain]
    first = f"{key} = (SELECT min({key}) FROM {table})"
    was = await pool.fetchval(f"SELECT {column} FROM {table} WHERE {first}")
    try:
        await write_past_triggers(pool, f"UPDATE {table} SET {column} = $1 WHERE {first}", "Nobody")
        yield
    finally:
        await write_past_triggers(pool, f"UPDATE {table} SET {column} = $1 WHERE {first}", was)


async def write_past_triggers(pool, statement, value):
    async with pool.acquire() as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(statement, value)
        await connection.execute("RESET session_replication_role")


async def some_of_each(pool):
    for value in ("1", "2"):
        await pool.execute("SELECT audit('Anna', 'run.cancel', $1, '')", value)
        await pool.execute(
            "INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ('a', 'k', $1) "
            "ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = excluded.config_value",
            value,
        )


@pytest.mark.parametrize("chain", ["acts", "configuration"])
async def test_a_chain_that_was_touched_is_told_until_it_is_as_it_was(settings, pool, chain):
    await some_of_each(pool)
    sealer = Sealer(pool, None, block=1)
    while await sealer.seal(chain):
        pass
    watch = AuditWatch(pool, settings, chain)
    assert await watch.look() == ""
    async with touched(pool, chain):
        assert "was changed" in await watch.look()
        assert list(watch.readings()) == [("perdure_audit_broken", (chain,), 1)]
        status, said = await watch.check()
        assert (status, "was changed" in said) == ("warning", True)
    assert await watch.look() == ""
    assert (await watch.check())[0] == "ok"


async def test_the_services_look_by_themselves_with_their_own_rights(settings, nc, pool):
    await apply_roles(settings, [], {})
    often = settings.model_copy(update={"audit_verify_interval": 0.05})
    config = ConfigManager(place_of(often, "config-manager"))
    scheduler = Scheduler(place_of(often, "scheduler"))
    platform = InProcess(often, nc)
    try:
        for service in (config, scheduler):
            await platform.start(service)
        await some_of_each(pool)

        async def sealed():
            return await pool.fetchval("SELECT count(DISTINCT chain) FROM audit_seals") == 2

        await eventually(sealed)
        for chain, service in (("configuration", config), ("acts", scheduler)):
            told = service.metrics.read
            async with touched(pool, chain):
                await eventually(lambda told=told, chain=chain: told()["perdure_audit_broken"] == {(chain,): 1})
            await eventually(lambda told=told, chain=chain: told()["perdure_audit_broken"] == {(chain,): 0})
    finally:
        for service in reversed(platform.services):
            await service.stop()
