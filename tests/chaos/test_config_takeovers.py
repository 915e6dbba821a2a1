"""Two ConfigManagers that take over from each other all the time lose no revision, and no agent goes back.

PERDURE_CHAOS_TAKEOVERS says how often, PERDURE_CHAOS_TAKEOVER_PAUSE how many seconds lie between two.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

from config_manager.service import ConfigManager
from tests.config_support import PUT, ask, following, manager, messages
from tests.support import eventually

TAKEOVERS = int(os.environ.get("PERDURE_CHAOS_TAKEOVERS", "8"))
PAUSE = float(os.environ.get("PERDURE_CHAOS_TAKEOVER_PAUSE", "0"))
LOSE_THE_LOCK = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks "
    "WHERE locktype = 'advisory' AND classid = 70726475 AND pid <> pg_backend_pid() "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


async def test_takeovers_under_writes_repeat_revisions_perhaps_but_lose_none(settings, nc, redis, pool) -> None:
    updates = await messages(nc, "config.update")
    stop = asyncio.Event()
    written = 0
    seen: dict[str, list[int]] = {"assistant": [], "mailer": []}

    async def write(agent: str, *, by_sql: bool) -> None:
        nonlocal written
        number = 0
        while not stop.is_set():
            number += 1
            if by_sql:
                await pool.execute(PUT, agent, "k", str(number))
            else:
                reply = await ask(nc, f"config.set.{agent}", {"configurations": {"k": number}}, timeout=10)
                assert reply["status"] == "success", reply
            written += 1
            await asyncio.sleep(0.005)

    async with AsyncExitStack() as stack:
        managers = [
            await stack.enter_async_context(manager(settings, instance_id=f"m-{number}", config_poll_interval=0.05))
            for number in range(2)
        ]
        for name, revisions in seen.items():

            async def on_change(_update, snapshot, revisions=revisions) -> None:
                revisions.append(snapshot.revision)

            await stack.enter_async_context(following(nc, redis, settings, name, on_change=on_change))
        writers = [asyncio.create_task(write(agent, by_sql=agent == "mailer")) for agent in seen]
        for _ in range(TAKEOVERS):
            leader = await eventually(lambda: next((each for each in managers if each.sync.leading), None))

            async def another_leads(leader=leader) -> bool:
                if leader.sync.leading:
                    await pool.execute(LOSE_THE_LOCK)
                    await asyncio.sleep(0.02)
                return any(each.sync.leading for each in managers if each is not leader)

            await eventually(another_leads, timeout=20)
            before = written
            await eventually(lambda before=before: updates and updates[-1]["revision"] > before)
            await asyncio.sleep(PAUSE)
        stop.set()
        await asyncio.gather(*writers)
        await eventually(lambda: updates[-1]["revision"] == written)
        heads = dict(await pool.fetch("SELECT agent_name, revision FROM config_heads"))
        for name, revisions in seen.items():
            await eventually(lambda name=name, revisions=revisions: revisions[-1] == heads[name])
            assert revisions == sorted(set(revisions)), f"{name} went back"
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
