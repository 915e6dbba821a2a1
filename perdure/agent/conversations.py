"""Conversations from outside: read, export, forget, prune. Nothing here takes part in a run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from perdure.agent.kept import message_spot, unsealed
from perdure.errors import Conflict, NotFound
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

_SQL = load_queries("sessions.sql")


async def history(pool: Pool, agent: str, session: str, *, after: int = 0, limit: int = 500) -> list[dict[str, Any]]:
    """The messages after seq `after`, at most `limit`: `seq`, `run_id`, `time` and the message's own fields.

    Raises `NotFound` when there is no such conversation.
    """
    if await pool.fetchrow(_SQL["get_session"], agent, session) is None:
        raise NotFound(f"agent {agent} has no session {session!r}")
    rows = await pool.fetch(_SQL["history"], agent, session, after, limit)
    return [
        {
            "seq": row["seq"],
            "run_id": row["run_id"],
            "time": row["created_at"].isoformat(),
            **orjson.loads(await unsealed(pool, row["message"], message_spot(agent, session))),
        }
        for row in rows
    ]


async def find(pool: Pool, session: str) -> list[str]:
    """The agents that have a conversation under this id."""
    return [row["agent_name"] for row in await pool.fetch(_SQL["agents_of_session"], session)]


async def sessions(
    pool: Pool, agent: str, *, limit: int = 50, before: tuple[datetime, str] | None = None
) -> list[dict[str, Any]]:
    """An agent's conversations, last used first; `before` is `updated_at` and id of the last one of the page before."""
    moment, session = before or (None, None)
    rows = await pool.fetch(_SQL["list_sessions"], agent, moment, session, limit)
    return [
        {
            "session_id": row["session_id"],
            "messages": row["messages"],
            "tokens": row["tokens"],
            "cost": row["cost"],
            "created_at": row["created_at"].isoformat(),
            "updated_at": row["updated_at"].isoformat(),
            "open_run": row["turn_run_id"],
        }
        for row in rows
    ]


async def reset(pool: Pool, agent: str, session: str) -> int:
    """Forget every message; how many they were. The next turn begins anew, and what it costs counts from 0.

    Raises `Conflict` while a turn is open, `NotFound` when there is no such conversation.
    """
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_SQL["reset_session"], agent, session)
        if row is None:
            if await connection.fetchrow(_SQL["get_session"], agent, session) is None:
                raise NotFound(f"agent {agent} has no session {session!r}")
            raise Conflict(f"session {session} is in the middle of a turn; reset it when the answer is there")
        await connection.execute(_SQL["drop_results"], agent, session)
        return int(await connection.fetchval(_SQL["drop_messages"], agent, session, row["first_seq"]))


async def prune(pool: Pool, agent: str, idle_seconds: float, *, limit: int = 200) -> int:
    """Delete conversations that nobody has used for `idle_seconds` and in which no turn is open; how many."""
    async with pool.acquire() as connection, connection.transaction():
        rows = await connection.fetch(_SQL["prune_sessions"], agent, idle_seconds, limit)
        gone = [row["session_id"] for row in rows]
        if gone:
            await connection.execute(_SQL["prune_messages"], agent, gone)
            await connection.execute(_SQL["prune_results"], agent, gone)
        return len(gone)
