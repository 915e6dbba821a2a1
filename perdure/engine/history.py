"""What a replay of a run reads, as JSON: for files that tests of authors replay against new code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from typing import Any, get_type_hints

import asyncpg

from perdure.engine.codec import decode, encode
from perdure.engine.room import STEP_BYTES, Room
from perdure.engine.rows import ClaimedRun, JournalRow
from perdure.engine.stored import WHOLE, Spots, open_columns, step_spots
from perdure.errors import NotFound
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from perdure.store.vault import Unreadable

_SQL = load_queries("runs.sql")
_ENGINE = load_queries("engine.sql")

ROWS, BYTES = 500, 400_000  # of one page

_JSON = ("task", "output", "result", "error")
_TIMES = {name for name, hint in get_type_hints(JournalRow).items() if hint in (datetime, datetime | None)}


async def page(pool: Pool, run_id: str, *, after: int = 0, room: int | None = None) -> dict[str, Any]:
    """The run, its rows after seq `after` and the snapshots they name; `next_after` is None on the last page.

    JSON texts are values; one that is NULL is left out, so that it differs from a JSON `null`. With `room` the page has
    about so many bytes at most, and a value that does not fit is named in `large`. Raises `NotFound`, `Unreadable`.
    """
    record = await pool.fetchrow(_SQL["recorded_run"], run_id)
    if record is None:
        raise NotFound(f"there is no run {run_id!r}", run_id=run_id)
    space = Room(room)
    run = _plain(await _opened(pool, record, WHOLE, space), space)
    found = await pool.fetch(_SQL["recorded_rows"], run_id, max(after, record["base_seq"]), ROWS)
    spots = step_spots(run_id)
    rows: list[dict[str, Any]] = []
    size = 0
    for record in found:
        each = await _opened(pool, record, spots, space)
        size += sum(len(text) for text in (each["result"], each["error"]) if isinstance(text, str)) + 200
        if rows and (size > BYTES or not space.has(STEP_BYTES, each["result"], each["error"])):
            break
        space.take(STEP_BYTES)
        rows.append(_plain(each, space))
    whole = len(rows) == len(found) < ROWS
    return {
        "status": "success",
        "run_id": run_id,
        "run": run,
        "rows": rows,
        "snapshots": await _snapshots(pool, run, rows),
        "next_after": None if whole else rows[-1]["seq"],
    }


async def whole(pool: Pool, run_id: str) -> dict[str, Any]:
    """The history of a run, all its pages as one: `run`, `rows`, `snapshots`. Raises `NotFound`."""
    found = await page(pool, run_id)
    rows, snapshots = found["rows"], found["snapshots"]
    while found["next_after"] is not None:
        found = await page(pool, run_id, after=found["next_after"])
        rows += found["rows"]
        snapshots |= found["snapshots"]
    return {"run": found["run"], "rows": rows, "snapshots": snapshots}


async def _snapshots(pool: Pool, run: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    wanted = {
        run["config_hash"],
        *(row["result"]["hash"] for row in rows if row["kind"] == "config" and "result" in row),
    }
    records = await pool.fetch(_ENGINE["snapshots"], run["agent_name"], [each for each in wanted if each])
    return {r["hash"]: {"revision": r["revision"], "values": decode(r["values"])} for r in records}


async def _opened(pool: Pool, record: asyncpg.Record, spots: Spots, space: Room) -> Mapping[str, Any]:
    (opened,) = await open_columns(pool, [record], spots, space)
    for column in spots:
        if isinstance(opened[column], Unreadable):
            raise opened[column]
    return opened


def _plain(record: Mapping[str, Any], space: Room) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, value in record.items():
        if name in _JSON:
            if value is not None:
                space.fill(said, name, value)
        else:
            said[name] = value.isoformat() if isinstance(value, datetime) else value
    return said


def recorded_row(said: Mapping[str, Any]) -> JournalRow:
    """A journal row of a page. Raises `KeyError` or `ValueError` for what is none."""
    values: dict[str, Any] = {}
    for field in fields(JournalRow):
        if field.name in _JSON:
            values[field.name] = _text(said, field.name)
        elif field.name in said or field.default is MISSING:
            value = said[field.name]
            values[field.name] = datetime.fromisoformat(value) if value and field.name in _TIMES else value
    return JournalRow(**values)


def recorded_run(said: Mapping[str, Any]) -> ClaimedRun:
    """A run of a page, as its next claimer holds it. Raises `KeyError` or `ValueError` for what is none."""
    plain = {
        name: said[name]
        for name in ("run_id", "agent_name", "workflow", "version", "session_id", "parent_run_id", "attempts",
                     "config_revision", "config_hash", "base_seq", "seq_floor")
    }  # fmt: skip
    began = datetime.fromisoformat(said["started_at"] or said["created_at"])
    return ClaimedRun(**plain, epoch=1, task=_text(said, "task") or "null", cancel_reason=None, started_at=began)


def _text(said: Mapping[str, Any], name: str) -> str | None:
    return encode(said[name], what=name) if name in said else None
