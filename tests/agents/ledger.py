"""An agent as a program of its own, whose steps leave a line in a table and can be held at a gate.

Tests make the tables `ledger` and `gates` (`LEDGER_TABLES`). A step waits while its run's gate names it.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import asyncpg

from perdure.agent.base import BaseAgent
from perdure.agent.process import AgentProcess
from perdure.bus.service import serve
from perdure.engine import Context, Retry, workflow
from perdure.store.failures import CONNECTION_ERRORS

LEDGER_TABLES = """
CREATE TABLE ledger (run_id text, step text, pid integer, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE gates (name text PRIMARY KEY);
"""
PATIENT = Retry(max_attempts=50, delay=0.05, factor=1.2, max_delay=0.5)


class Ledger(BaseAgent):
    name = "ledger"

    @workflow
    async def run(self, ctx: Context, task: dict[str, Any]) -> list[int]:
        done = [
            await ctx.step(f"step {n}", self.write, ctx.run_id, f"step {n}", task.get("gates", {}), retry=PATIENT)
            for n in range(task["steps"])
        ]
        return [len(done)]

    @workflow
    async def mixed(self, ctx: Context, task: dict[str, Any]) -> dict[str, Any]:
        """A little of everything: steps, a gather, a sleep, a child, a signal, and a transaction."""
        gates = task.get("gates", {})
        first = await ctx.step("first", self.write, ctx.run_id, "first", gates, retry=PATIENT)
        both = await ctx.gather(
            *(ctx.step("part", self.write, ctx.run_id, f"part {n}", gates, retry=PATIENT) for n in range(3))
        )
        await ctx.sleep("pause", 0.3)
        child = await ctx.call("ledger", {"steps": 2})
        said = await ctx.wait_signal("go")
        told = await ctx.transaction("book", _book, ctx.run_id, retry=PATIENT)
        last = await ctx.step("last", self.write, ctx.run_id, "last", gates, retry=PATIENT)
        return {"steps": [first, *both, last], "child": child, "said": said, "told": told}

    @workflow
    async def large(self, ctx: Context, task: dict[str, Any]) -> dict[str, Any]:
        """A step whose result is large, and one that is held at a gate when it is there."""
        made = await ctx.step("make", self.make, ctx.run_id, task["size"])
        await ctx.step("held", self.write, ctx.run_id, "held", task.get("gates", {}), retry=PATIENT)
        return {"made": made, "notes": len(task["notes"])}

    async def make(self, run_id: str, size: int) -> str:
        await self.write(run_id, "make", {})
        return f"{run_id} " + "é" * (size // 2)

    async def write(self, run_id: str, step: str, gates: dict[str, str]) -> str:
        pool = self.resources.pool
        await pool.execute("INSERT INTO ledger (run_id, step, pid) VALUES ($1, $2, $3)", run_id, step, os.getpid())
        if gate := gates.get(step):
            while True:
                try:
                    if await pool.fetchval("SELECT 1 FROM gates WHERE name = $1", gate):
                        break
                except CONNECTION_ERRORS:
                    pass  # the database is being restarted: the gate is looked for again
                await asyncio.sleep(0.02)
        return step


async def _book(connection: asyncpg.Connection[Any], run_id: str) -> int:
    await connection.execute("INSERT INTO ledger (run_id, step, pid) VALUES ($1, 'book', $2)", run_id, os.getpid())
    return 1


if __name__ == "__main__":
    serve(AgentProcess(Ledger))
