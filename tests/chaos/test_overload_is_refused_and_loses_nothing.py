"""Ten times as many callers as a gateway has places: what is accepted completes, the rest is told 429, memory is flat.

`PERDURE_CHAOS_OVERLOAD_SECONDS=60` is the size of `make chaos`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import Any

import httpx2
import orjson
import psutil
from nats.aio.client import Client
from nats.errors import NoRespondersError

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from tests.platform import in_process
from tests.processes import processes
from tests.support import eventually, temporary_folder

SECONDS = float(os.environ.get("PERDURE_CHAOS_OVERLOAD_SECONDS", "3"))
PLACES = 8
CALLERS = 10 * PLACES
ENOUGH = 20  # answers of each kind
GROWTH = 24 * 1024 * 1024  # bytes that the second half may take over the first


class Clerk(BaseAgent):
    name = "clerk"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        return await ctx.step("note", self.note, task)

    async def note(self, task: Any) -> Any:
        return task


async def test_ten_times_the_load_is_refused_and_what_was_accepted_completes(settings, nc, pool, record_property):
    answers: Counter[int] = Counter()
    accepted: list[str] = []
    memory: list[int] = []
    async with in_process(settings, nc, Clerk):
        with temporary_folder("overload") as folder:
            async with processes(settings, folder) as made:
                gateway = made.start(
                    "services.gateway", "gateway", PERDURE_GATEWAY_PORT="0", PERDURE_GATEWAY_MAX_REQUESTS=str(PLACES)
                )
                url = await eventually(lambda: listening(nc), timeout=30)
                until = time.monotonic() + SECONDS
                patience = until + 60

                def goes_on() -> bool:
                    """For `SECONDS`, and on a busy machine until there is something to be counted."""
                    now = time.monotonic()
                    return now < until or (min(answers[200], answers[429]) <= ENOUGH and now < patience)

                size = psutil.Process(gateway.pid).memory_info

                async def call(http: httpx2.AsyncClient) -> None:
                    while goes_on():
                        answer = await http.post("/agents/clerk/run", json={"task": {"file": "may.csv"}})
                        answers[answer.status_code] += 1
                        if answer.status_code == 200:
                            accepted.append(answer.json()["run_id"])
                        else:
                            assert int(answer.headers["retry-after"]) >= 1

                async def watch() -> None:
                    while goes_on():
                        memory.append(size().rss)
                        await asyncio.sleep(SECONDS / 30)

                limits = httpx2.Limits(max_connections=CALLERS)
                async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=limits) as http:
                    await asyncio.gather(watch(), *(call(http) for _ in range(CALLERS)))
                after = size().rss
        await eventually(lambda: pool.fetchval("SELECT bool_and(status = 'completed') FROM runs"), timeout=60)
    record_property("overload", {"answers": dict(answers), "rss": [memory[len(memory) // 3], after]})
    assert set(answers) == {200, 429}
    assert answers[200] > ENOUGH
    assert answers[429] > ENOUGH
    assert after < memory[len(memory) // 3] + GROWTH
    states = await pool.fetch("SELECT run_id, status FROM runs")
    assert {row["run_id"] for row in states} == set(accepted), "what was refused was not accepted"


async def listening(nc: Client) -> str | None:
    """Where the gateway says that it answers."""
    try:
        answer = await nc.request("$SRV.INFO.gateway", timeout=1)
    except (NoRespondersError, TimeoutError):
        return None
    return str(orjson.loads(answer.data)["metadata"]["url"])
