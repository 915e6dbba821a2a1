"""A process of the agent `six`: six tools in a row that write into a ledger, killed at the point that the test names.

`KILL_AT=point/step/n` kills it (SIGKILL) when the engine reaches that point of that step for the n-th time.
"""

from __future__ import annotations

import itertools
import os
import signal

import asyncpg

from perdure.agent.durable import DurableAgent
from perdure.agent.process import AgentProcess
from perdure.agent.tools import tool
from perdure.bus.service import serve
from perdure.engine import StepContext, points
from perdure.llm.types import ModelReply, ModelRequest, ToolRequest
from perdure.settings import Settings

TOOLS = 6


@tool
async def write(n: int, step: StepContext) -> str:
    """Write a line into the ledger, once for each idempotency key."""
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    try:
        await connection.execute("INSERT INTO tries (n) VALUES ($1)", n)
        await connection.execute("INSERT INTO ledger VALUES ($1, $2) ON CONFLICT DO NOTHING", step.idempotency_key, n)
    finally:
        await connection.close()
    return f"line {n}"


class Model:
    """Calls `write` six times, one after the other, then answers with all it was told."""

    async def complete(self, request: ModelRequest, *, on_delta: object = None) -> ModelReply:
        told = [message["content"] for message in request.messages if message["role"] == "tool"]
        if len(told) == TOOLS:
            return ModelReply(", ".join(told), "answer")
        return ModelReply("", "tools", [ToolRequest("call_0", "write", f'{{"n": {len(told)}}}')])


def kill_at(where: str) -> None:
    """Die, without a word, at `point/step/n`."""
    wanted, _, number = where.rpartition("/")
    count = itertools.count(1)

    def hook(point: str, _run_id: str, name: str) -> None:
        if f"{point}/{name}" == wanted and next(count) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    points.install(hook)


if __name__ == "__main__":
    if at := os.environ.get("KILL_AT"):
        kill_at(at)
    serve(AgentProcess(DurableAgent("six", model=Model(), tools=[write]), Settings()))
