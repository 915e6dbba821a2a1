from __future__ import annotations

import orjson

from perdure.bus.streams import ensure_streams
from services.scheduler.service import Scheduler
from tests.agents.ledger import LEDGER_TABLES, Ledger
from tests.platform import InProcess, in_process
from tests.support import eventually

TASK = orjson.dumps({"task": {"steps": 1}})


async def test_a_task_published_while_nobody_is_up_becomes_one_run(settings, servers, nc, pool):
    await pool.execute(LEDGER_TABLES)
    js = nc.jetstream()
    await ensure_streams(js)  # a platform has been here before
    await js.publish("task.ledger", TASK, headers={"Nats-Msg-Id": "one"})
    assert (await js.publish("task.ledger", TASK, headers={"Nats-Msg-Id": "one"})).duplicate
    await js.publish("task.ledger", TASK)
    await js.publish("task.ledger", b"no JSON at all")
    await js.publish("task.ledger", orjson.dumps({"no": "task"}))
    async with in_process(settings, nc, Ledger):
        await eventually(lambda: pool.fetchval("SELECT count(*) = 2 FROM runs WHERE status = 'completed'"))

        async def empty() -> bool:
            return (await js.stream_info("TASKS")).state.messages == 0

        await eventually(empty, message="what is no task is refused for good, what is one is acked")
        # The stream forgets what it has seen; the run's id is made of the message's.
        await js.delete_stream("TASKS")
        await ensure_streams(js)
        await js.publish("task.ledger", TASK, headers={"Nats-Msg-Id": "one"})
        await js.publish("task.ledger", TASK, headers={"Nats-Msg-Id": "two"})
        await eventually(lambda: pool.fetchval("SELECT count(*) = 3 FROM runs WHERE status = 'completed'"), timeout=20)
    assert await pool.fetchval("SELECT count(*) FROM runs") == 3
    assert await pool.fetchval("SELECT count(*) FROM ledger") == 3


async def test_a_task_that_comes_while_postgres_is_away_waits_for_it(own_postgres, own_servers, settings, nc, pool):
    await pool.execute(LEDGER_TABLES)
    platform = InProcess(settings, nc)
    scheduler = await platform.start(Scheduler(settings))
    try:
        js = nc.jetstream()
        await own_servers.postgres.kill()
        for n in range(5):
            await js.publish("task.ledger", TASK, headers={"Nats-Msg-Id": f"m{n}"})
        await own_servers.postgres.start()
        await eventually(lambda: pool.fetchval("SELECT count(*) = 5 FROM runs"), timeout=20)
    finally:
        await scheduler.stop()
