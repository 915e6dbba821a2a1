"""The runs of one tenant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson

from perdure.errors import InvalidRequest
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

_SQL = load_queries("edge.sql")


async def tenant_runs(
    pool: Pool,
    tenant: str | None,
    *,
    agent: str | None = None,
    status: Sequence[str] | None = None,
    session_id: str | None = None,
    parent_run_id: str | None = None,
    workflow: str | None = None,
    version: str | None = None,
    queue: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> tuple[list[dict[str, Any]], str | None]:
    """A tenant's runs as `run.list` gives them, newest first, and the cursor of the next page. `InvalidRequest`."""
    if cursor is not None and not (cursor.isdecimal() and len(cursor) < 19):
        raise InvalidRequest("parameter 'cursor': give the next_cursor of the page before, unchanged")
    before = None if cursor is None else int(cursor)
    which = (tenant, agent, status, session_id, parent_run_id, before, limit + 1)
    more = (workflow, version, queue, created_after, created_before)
    rows = await pool.fetch(_SQL["tenant_runs"], *which, *more)
    found = []
    for row in rows[:limit]:
        each = dict(row)
        del each["turn"]
        each["agent"] = each.pop("agent_name")
        each["error"] = None if row["error"] is None else orjson.loads(row["error"])
        found.append(each)
    return found, str(rows[limit - 1]["turn"]) if len(rows) > limit else None
