"""The other processes of the benchmark: N agents that follow, and a bare echo. Arguments: N, how names begin."""

from __future__ import annotations

import asyncio
import sys
import time

import orjson
import uvloop

from perdure.bus.connection import connect
from perdure.config.client import ConfigClient
from perdure.config.keys import DurableAgentSettings
from perdure.settings import Settings
from perdure.store.redis import create_redis


async def main(count: int, prefix: str) -> None:
    settings = Settings()
    nc, redis = await connect(settings, "bench agents"), create_redis(settings)
    tasks: set[asyncio.Task[None]] = set()
    payload = orjson.dumps({"status": "success", "agent_name": "a", "configurations": {"n": "499"}, "revision": 500})

    async def bare(_message) -> None:
        await nc.publish("bench.bare", str(time.time()).encode())

    async def echo(message) -> None:
        task = asyncio.create_task(nc.publish(message.reply, payload))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def changed(_update, snapshot) -> None:
        await nc.publish("bench.live", orjson.dumps([snapshot.agent_name, snapshot.revision, time.time()]))

    await nc.subscribe("bench.notified", cb=bare)
    await nc.subscribe("bench.echo", cb=echo)
    for number in range(count):
        client = ConfigClient(
            nats=nc,
            redis=redis,
            settings=settings,
            agent_name=f"{prefix}{number}",
            instance_id=f"{prefix}{number}",
            settings_model=DurableAgentSettings if count == 1 else None,
            on_change=changed,
        )
        await client.start(patience=20)
    await nc.publish("bench.ready", prefix.encode())
    await asyncio.Event().wait()


uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
