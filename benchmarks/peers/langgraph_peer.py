"""LangGraph with AsyncPostgresSaver, durability "sync", at workload A: STEPS RUNS CALLERS are its arguments."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TypedDict

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from timing import timed

steps, runs, callers = (int(each) for each in sys.argv[1:4])


class State(TypedDict):
    """What a node hands on."""

    number: int


async def noop(state: State) -> State:
    """Nothing."""
    return {"number": state["number"]}


async def main() -> None:
    """Warm up, then measure."""
    graph = StateGraph(State)
    names = [f"n{number}" for number in range(steps)]
    for name in names:
        graph.add_node(name, noop)
    for before, after in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(before, after)
    keep = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=4, max_size=16, kwargs=keep) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        app = graph.compile(checkpointer=saver)

        async def one(number: int) -> None:
            where = {"configurable": {"thread_id": f"{callers}-{number}"}}
            await app.ainvoke({"number": 1}, where, durability="sync")

        await one(-1)
        await timed(one, steps, runs, callers)


asyncio.run(main())
