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

# No neighbour ends before the one that kills was lost once, and is claimed again.
WAS_BESIDE = """
SELECT bool_and(attempts >= 2 OR finished_at IS NOT NULL) FROM runs
WHERE agent_name = 'poison' AND (task ->> 'kills')::boolean
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
        while not await self.resources.pool.fetchval(WAS_BESIDE):
            await asyncio.sleep(0.01)
        return "done"


if __name__ == "__main__":
    claims.ALONE = 60.0  # however slow the machine is
    serve(AgentProcess(Poison))
