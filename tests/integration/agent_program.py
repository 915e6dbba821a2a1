"""A process of the agent `six`: six tools in a row that write into a ledger, killed at the point that the test names.

`KILL_AT=n` kills it (SIGKILL) when the engine reaches a named point for the n-th time.
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


def kill_at(number: int) -> None:
    """Die, without a word, when a point is reached for the `number`-th time."""
    count = itertools.count(1)

    def hook(_point: str, _run_id: str, _name: str) -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    points.install(hook)


if __name__ == "__main__":
    if at := int(os.environ.get("KILL_AT", "0")):
        kill_at(at)
    serve(AgentProcess(DurableAgent("six", model=Model(), tools=[write]), Settings()))
