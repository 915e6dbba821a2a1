"""Two ConfigManagers that take over from each other all the time lose no revision."""

from __future__ import annotations

import asyncio

from config_manager.service import ConfigManager
from tests.config_support import PUT, manager, messages
from tests.support import eventually

TAKEOVERS = 8


async def test_takeovers_under_writes_repeat_revisions_perhaps_but_lose_none(settings, nc, pool) -> None:
    updates = await messages(nc, "config.update")
    stop = asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            await pool.execute(PUT, "assistant", "k", str(written))
            written += 1
            await asyncio.sleep(0.005)

    async with manager(settings, instance_id="m-0"):
        writing = asyncio.create_task(write())
        for number in range(1, TAKEOVERS):
            async with manager(settings, instance_id=f"m-{number}") as running:
                # Whoever leads loses its connection, and with it the lock.
                await pool.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks "
                    "WHERE locktype = 'advisory' AND classid = 70726475 AND pid <> pg_backend_pid() "
                    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                )
                await eventually(lambda running=running: running.sync.listening)
                before = written
                await eventually(lambda before=before: updates and updates[-1]["revision"] > before)
        stop.set()
        await writing
        await eventually(lambda: updates[-1]["revision"] == written)
    assert {update["revision"] for update in updates} == set(range(1, written + 1))


async def test_all_managers_lead_one_after_another_and_never_two_at_once(settings, pool) -> None:
    managers = [ConfigManager(settings.model_copy(update={"instance_id": f"m-{number}"})) for number in range(3)]
    for each in managers:
        await each.start()
    led = set()
    while managers:
        leader = await eventually(lambda: next((each for each in managers if each.sync.leading), None))
        assert sum(each.sync.leading for each in managers) == 1
        led.add(leader.instance_id)
        managers.remove(leader)
        await leader.stop()
    assert len(led) == 3
