"""An agent as a program of its own whose steps count, in the database, how many of their queue are inside at a time.

Tests make the table `inside` (`INSIDE_TABLE`). A step of a run whose task has a `gate` waits until `gates` names it.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from perdure.agent.base import BaseAgent
from perdure.agent.process import AgentProcess
from perdure.bus.service import serve
from perdure.engine import Context, Retry, workflow
from perdure.store.failures import CONNECTION_ERRORS

INSIDE_TABLE = """
CREATE TABLE inside (
  run_id text, queue text, pid integer, running bigint, here bigint, at timestamptz DEFAULT clock_timestamp()
);
CREATE TABLE gates (name text PRIMARY KEY);
"""
COUNT = """
INSERT INTO inside (run_id, queue, pid, running, here)
SELECT me.run_id, me.queue_name, $2, count(*), count(*) FILTER (WHERE r.process_id = me.process_id)
FROM runs AS me JOIN runs AS r ON r.queue_name = me.queue_name AND r.status = 'running'
WHERE me.run_id = $1 GROUP BY me.run_id
"""
PATIENT = Retry(max_attempts=50, delay=0.05, factor=1.2, max_delay=0.5)


class Queued(BaseAgent):
    name = "queued"

    @workflow
    async def run(self, ctx: Context, task: dict[str, Any]) -> int:
        for n in range(task.get("steps", 1)):
            await ctx.step(f"count {n}", self.count, ctx.run_id, task.get("gate"), retry=PATIENT)
        return int(task.get("n", 0))

    @workflow
    async def nap(self, ctx: Context, task: dict[str, Any]) -> str:
        await ctx.step("before", self.count, ctx.run_id, None)
        await ctx.wait_signal("go")
        await ctx.step("after", self.count, ctx.run_id, task.get("gate"))
        return "slept"

    async def count(self, run_id: str, gate: str | None) -> None:
        pool = self.resources.pool
        await pool.execute(COUNT, run_id, os.getpid())
        while gate is not None:
            try:
                if await pool.fetchval("SELECT 1 FROM gates WHERE name = $1", gate):
                    return
            except CONNECTION_ERRORS:
                pass
            await asyncio.sleep(0.02)


class Other(Queued):
    name = "other"


if __name__ == "__main__":
    serve(AgentProcess(Queued))
