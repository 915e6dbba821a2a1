"""One conversation in LangGraph with AsyncPostgresSaver: TURNS and ANSWER are its arguments, DATABASE_URL is set.

A turn is a message of the user and `ANSWER`, from a node that asks nobody: what is left is the cost of keeping it.
Prints one JSON line: for each turn its milliseconds and the bytes of WAL that it wrote.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

turns, answer = int(sys.argv[1]), sys.argv[2]


async def model(_: MessagesState) -> dict[str, Any]:
    """The answer, at once."""
    return {"messages": [{"role": "assistant", "content": answer}]}


async def written(look: AsyncConnection[Any]) -> int:
    """Bytes of WAL since the server was made."""
    cursor = await look.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def main() -> None:
    """Talk, and say what each turn cost."""
    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_edge(START, "model")
    graph.add_edge("model", END)
    keep = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    url = os.environ["DATABASE_URL"]
    took: list[float] = []
    wal: list[int] = []
    async with (
        AsyncConnectionPool(url, min_size=2, max_size=4, kwargs=keep) as pool,
        await AsyncConnection.connect(url, autocommit=True) as look,
    ):
        saver = AsyncPostgresSaver(pool)  # type: ignore[arg-type]
        await saver.setup()
        app = graph.compile(checkpointer=saver)
        where = {"configurable": {"thread_id": "long"}}
        for number in range(turns):
            before = await written(look)
            began = time.perf_counter()
            said = {"messages": [{"role": "user", "content": f"turn {number}"}]}
            await app.ainvoke(said, where, durability="sync")  # type: ignore[arg-type]
            took.append((time.perf_counter() - began) * 1000)
            wal.append(await written(look) - before)
    print(json.dumps({"ms": took, "wal": wal}), flush=True)


asyncio.run(main())
