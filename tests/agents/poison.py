"""An agent as a program of its own, one of whose steps takes its process with it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from perdure.agent.base import BaseAgent
from perdure.agent.process import AgentProcess
from perdure.bus.service import serve
from perdure.engine import Context, claims, workflow

HELD_TABLE = "CREATE TABLE held (run_id text, beside bigint, attempts integer)"
HOLD = """
INSERT INTO held
SELECT me.run_id, count(*), me.attempts
FROM runs AS me JOIN runs AS r ON r.process_id = me.process_id AND r.status = 'running'
WHERE me.run_id = $1 GROUP BY me.run_id
"""


class Poison(BaseAgent):
    name = "poison"

    @workflow
    async def run(self, ctx: Context, task: dict[str, Any]) -> str:
        return await ctx.step("work", self.work, ctx.run_id, task["kills"])

    async def work(self, run_id: str, kills: bool) -> str:
        await self.resources.pool.execute(HOLD, run_id)
        if kills:
            os._exit(9)
        await asyncio.sleep(0.3)  # so that it is beside the one that kills
        return "done"


if __name__ == "__main__":
    claims.ALONE = 60.0  # however slow the machine is
    serve(AgentProcess(Poison))
