"""A process of the teams `circle` and `chosen` and of the members of both: what a test kills while they talk.

A member says its name and how many turns it has taken in a talk, and writes a row into `spoken` when it is asked; `bob`
waits, in his second turn, until there is a row in `go`. A talk's task is the name of its team.
"""

from __future__ import annotations

import asyncio
import os

import asyncpg

from perdure.agent.durable import DurableAgent
from perdure.agent.process import AgentProcess
from perdure.agent.team import Team
from perdure.bus.service import serve
from perdure.llm.types import ModelReply, ModelRequest
from perdure.settings import Settings

NAMES = ("ann", "bob", "eve")
ORDER = {
    "circle": NAMES + NAMES,
    "chosen": ("eve", "bob", "ann", "bob", "eve", "ann"),  # what the model of the team says
}


class Member:
    """Says `<name><n>` and writes that it was asked; a second turn of bob's takes until there is a row in `go`."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def complete(self, request: ModelRequest, *, on_delta: object = None) -> ModelReply:
        connection = await asyncpg.connect(os.environ["DATABASE_URL"])
        try:
            team = request.messages[-1]["content"]
            said = sum(f"{self.name}: " in line for line in str(request.messages[0]["content"]).splitlines())
            await connection.execute("INSERT INTO spoken VALUES ($1, $2, $3)", team, self.name, said + 1)
            while (self.name, said) == ("bob", 1) and not await connection.fetchval("SELECT count(*) FROM go"):
                await asyncio.sleep(0.02)
        finally:
            await connection.close()
        return ModelReply(f"{self.name}{said + 1}", "answer")


class Chair:
    """Chooses the speakers of `chosen`; each choice is a row of `choices`."""

    async def complete(self, request: ModelRequest, *, on_delta: object = None) -> ModelReply:
        asked = str(request.messages[-1]["content"])
        spoken = sum(line.startswith(tuple(f"{name}: " for name in NAMES)) for line in asked.splitlines())
        connection = await asyncpg.connect(os.environ["DATABASE_URL"])
        try:
            await connection.execute("INSERT INTO choices VALUES ($1)", spoken)
        finally:
            await connection.close()
        return ModelReply(f'{{"next": "{ORDER["chosen"][spoken]}"}}', "answer")


if __name__ == "__main__":
    most = len(ORDER["circle"])
    circle = Team("circle", [DurableAgent(name, model=Member(name)) for name in NAMES], max_turns=most)
    chosen = Team("chosen", NAMES, mode="select", max_turns=most, model=Chair())
    serve(AgentProcess(Team("both", [circle, chosen]), Settings()))
