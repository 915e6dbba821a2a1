"""Runs as callers see them: accept, look, list, signal. The scheduler answers with these, and with `control`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
from nats.aio.client import Client

from perdure import subjects
from perdure.engine import queues
from perdure.engine.accepting import insert_starts
from perdure.engine.codec import decode, encode, short_hash
from perdure.engine.events import end_data, ended_payload, publish_nowait, render
from perdure.engine.points import reach
from perdure.engine.room import STEP_BYTES, Room
from perdure.engine.rows import TERMINAL, Move, Start
from perdure.engine.start_options import StartOptions
from perdure.engine.stored import OUTCOME, WHOLE, open_columns, readable, shown_spots, signal_spot, step_spots
from perdure.errors import ApiError, Conflict, InvalidRequest, NotFound
from perdure.store.postgres import Connection, Kept, Pool, PooledConnection
from perdure.store.queries import load_queries
from perdure.store.vault import PLAIN, Vault, vault_of

_SQL = load_queries("runs.sql")
_ENGINE = load_queries("engine.sql")
_ENDS = load_queries("ends.sql")

STATUSES = frozenset(
    {"pending", "running", "waiting", "paused", "blocked", "needs_review", "completed", "failed", "cancelled", "dead"}
)


def new_start(
    run_id: str,
    agent: str,
    task: Any,
    *,
    workflow: str = "run",
    session_id: str | None = None,
    parent: tuple[str, str] | None = None,
    options: StartOptions | None = None,
) -> Start:
    """A run to be accepted. Raises `TypeError` when `task` cannot travel as JSON."""
    text = encode(task, what="task")
    fingerprint = short_hash(agent, workflow, session_id or "", text)
    parent_run, parent_path = parent or (None, None)
    return Start(run_id, agent, workflow, session_id, text, fingerprint, parent_run, parent_path, options)


async def accept(pool: Pool | Kept, starts: Sequence[Start]) -> dict[str, str]:
    """Make each start a durable run, in one commit; the status of each by run id.

    A run id that exists with the same task is the same run. One that exists with another task is marked `conflict`.
    """
    sessions = [f"{start.agent_name}/{start.session_id}" for start in starts if start.session_id]
    async with pool.acquire() as connection:
        if any(start.options or start.callback for start in starts):
            async with connection.transaction():
                if sessions:  # before the locks of `accept`, which are those of some of the starts
                    await connection.execute(_SQL["lock_sessions"], sessions)
                created = await insert_starts(connection, starts)
        else:
            created = await insert_starts(connection, starts)
        statuses = dict.fromkeys(created, "accepted")
        if len(statuses) == len(starts):
            return statuses
        hashes = {start.run_id: start.task_hash for start in starts}
        before = await connection.fetch(
            _SQL["accepted_before"], [start.run_id for start in starts if start.run_id not in statuses]
        )
    for record in before:
        run_id = record["run_id"]
        statuses[run_id] = record["status"] if record["task_hash"] == hashes[run_id] else "conflict"
    return statuses


def outcome(record: Mapping[str, Any], room: Room | None = None) -> dict[str, Any]:
    """A run's reply: `status`, `run_id`, `agent`, and `output` or `error` when it has ended.

    What `room` has no place for is named in `large`, with its size. The columns are as `open_columns` gives them.
    """
    room = room or Room()
    reply: dict[str, Any] = {"status": record["status"], "run_id": record["run_id"], "agent": record["agent_name"]}
    if record["status"] == "completed" and record["output"] is not None:
        room.fill(reply, "output", record["output"])
    if record["error"] is not None:
        room.fill(reply, "error", record["error"])
    return reply


async def outcomes(pool: Pool, records: Sequence[asyncpg.Record], room: int) -> list[dict[str, Any]]:
    """The replies of ended runs, each of at most about `room` bytes."""
    opened = await open_columns(pool, records, OUTCOME, Room(room))
    return [outcome(readable(record, "output", "error"), Room(room)) for record in opened]


async def get(
    pool: Pool, run_id: str, *, steps: bool = True, limit: int = 1000, after: int = 0, room: int | None = None
) -> dict[str, Any]:
    """One run with its steps so far. Raises `NotFound`.

    With `room` the reply has about that many bytes at most: values that do not fit are named in `large`, with their
    sizes, and when steps are left out `more` says so.
    """
    record = await pool.fetchrow(_SQL["get"], run_id)
    if record is None:
        raise NotFound(f"there is no run {run_id!r}", run_id=run_id)
    space = Room(room)
    (opened,) = await open_columns(pool, [record], WHOLE, space)
    whole = readable(opened, "output", "error", "task")
    reply = outcome(whole, space) | {
        "workflow": record["workflow"],
        "version": record["version"] or None,
        "source_hash": record["source_hash"],
        "reason": await _why_pending(pool, record),
        "queue": record["queue_name"],
        "priority": record["priority"],
        "fair_key": record["fair_key"] or None,
        "session_id": record["session_id"],
        "parent_run_id": record["parent_run_id"],
        "origin_run_id": record["origin_run_id"],
        "origin_kind": record["origin_kind"],
        "epoch": record["epoch"],
        "attempts": record["attempts"],
        "process_id": record["process_id"],
        "config_revision": record["config_revision"],
        "end_seq": record["end_seq"],
        "wake_at": _time(record["wake_at"]),
        "waiting_for": record["waiting_signals"] or [],
        "waiting_children": record["waiting_children"] or [],
        "created_at": _time(record["created_at"]),
        "started_at": _time(record["started_at"]),
        "finished_at": _time(record["finished_at"]),
    }
    space.fill(reply, "task", whole["task"])
    if record["callback"]:
        reply["callbacks"] = [_callback(each) for each in await pool.fetch(_ENDS["callbacks_of"], run_id)]
    if steps:
        reply["steps"] = []
        rows = await pool.fetch(_SQL["steps"], run_id, after, limit)
        for row in rows:
            (opened,) = await open_columns(pool, [row], shown_spots(run_id), space)
            whole = readable(opened, "result", "error", "input")
            if reply["steps"] and not space.has(STEP_BYTES, whole["result"], whole["error"]):
                reply["more"] = True
                break
            reply["steps"].append(_step(whole, space))
    return reply


async def value_of(pool: Pool, run_id: str, what: str, seq: int | None) -> str | None:
    """The JSON text of a run's `task`, `output` or `error`, or (with `seq`) of a step's `result` or `error`.

    None when there is no such value. Raises `NotFound` for an unknown run or step, `Unreadable`.
    """
    if seq is None:
        record = await pool.fetchrow(_SQL["get"], run_id)
        spots = WHOLE
    else:
        rows = await pool.fetch(_SQL["steps"], run_id, seq - 1, 1)
        record = rows[0] if rows and rows[0]["seq"] == seq else None
        spots = step_spots(run_id)
    if record is None:
        raise NotFound(
            f"there is no run {run_id!r}" + ("" if seq is None else f", or no step {seq} of it"), run_id=run_id
        )
    if what not in spots:
        raise InvalidRequest(f"field 'what': it is one of {sorted(spots)}{'' if seq is None else ' with a seq'}")
    (text,) = await vault_of(pool).open(pool, [(record[what], spots[what](record))])
    return text


async def _why_pending(pool: Pool, run: asyncpg.Record) -> dict[str, str] | None:
    """What a run waits for that has not begun, or cannot go on: a time, a process, its turn, a place in its queue."""
    if run["status"] == "waiting" and run["started_at"] is None and run["wake_at"] is not None:
        return {"code": "waiting_for_time", "message": f"it begins at {run['wake_at'].isoformat()}"}
    if run["status"] != "pending":
        return None
    found = await pool.fetchrow(_SQL["why_pending"], run["run_id"])
    agent, workflow, version = run["agent_name"], run["workflow"], run["version"]
    if found is None:
        return None
    if not found["processes"]:
        return {"code": "waiting_for_process", "message": f"no process of agent {agent!r} is up"}
    if not found["versions"]:
        return {"code": "waiting_for_workflow", "message": f"no process of agent {agent!r} has a workflow {workflow!r}"}
    if version is not None and version not in found["versions"]:
        wanted = f"version {version!r}" if version else "the form without a version"
        offered = ", ".join(repr(each) if each else "one without a version" for each in found["versions"])
        said = f"no process of agent {agent!r} runs {wanted} of workflow {workflow!r}; they run {offered}"
        return {"code": "waiting_for_version", "message": said}
    if found["behind"]:
        return {"code": "waiting_for_turn", "message": f"an earlier run of session {run['session_id']!r} is not over"}
    return await queues.why_queued(pool, run["queue_name"]) if run["queue_name"] is not None else None


def _callback(record: asyncpg.Record) -> dict[str, Any]:
    told = {key: record[key] for key in ("callback_id", "status", "url", "subject", "state", "attempts", "last_error")}
    return told | {key: _time(record[key]) for key in ("next_try", "delivered_at")}


def _time(moment: Any) -> str | None:
    return None if moment is None else moment.isoformat()


def _step(record: Mapping[str, Any], room: Room) -> dict[str, Any]:
    names = {"ok": "completed", "error": "failed", "timeout": "timed_out", "open": "waiting"}
    step = {
        "seq": record["seq"],
        "path": record["path"],
        "kind": record["kind"],
        "name": record["name"],
        "input": decode(record["input"]),
        "status": "retrying" if record["kind"] == "retry" else names[record["outcome"]],
        "result": None,
        "error": None,
        "attempt": record["attempt"],
        "epoch": record["epoch"],
        "process_id": record["process_id"],
        "config_revision": record["config_revision"],
        "started_at": _time(record["started_at"]),
        "finished_at": _time(record["finished_at"]),
    }
    room.take(STEP_BYTES + len(record["input"] or ""))
    room.fill(step, "result", record["result"])
    room.fill(step, "error", record["error"])
    if isinstance(step["result"], dict) and "input_tokens" in step["result"]:
        step["tokens"] = {side: step["result"].get(f"{side}_tokens") for side in ("input", "output")}
    return step


async def list_runs(
    pool: Pool,
    *,
    agent: str | None = None,
    statuses: Sequence[str] | None = None,
    session_id: str | None = None,
    parent_run_id: str | None = None,
    queue: str | None = None,
    workflow: str | None = None,
    version: str | None = None,
    created: tuple[datetime | None, datetime | None] = (None, None),
    before: int | None = None,
    limit: int = 50,
) -> tuple[list[dict[str, Any]], int | None]:
    """The newest runs first, and the cursor of the next page. Raises `InvalidRequest` for an unknown status.

    `created` says from when on, and before when.
    """
    if unknown := set(statuses or ()) - STATUSES:
        raise InvalidRequest(f"status: unknown {sorted(unknown)}; known are {sorted(STATUSES)}")
    records = await pool.fetch(
        _SQL["list"],
        agent,
        list(statuses) if statuses else None,
        session_id,
        parent_run_id,
        before,
        limit + 1,
        queue,
        workflow,
        version,
        *created,
    )
    names = {record["queue_name"] for record in records if record["status"] == "pending"}
    reasons = {name: await queues.why_queued(pool, name) for name in names if name is not None}
    errors = await open_columns(pool, records[:limit], {"error": OUTCOME["error"]})
    opened = [readable(record, "error") for record in errors]
    rows = [
        {
            "run_id": r["run_id"],
            "agent": r["agent_name"],
            "workflow": r["workflow"],
            "session_id": r["session_id"],
            "parent_run_id": r["parent_run_id"],
            "status": r["status"],
            "queue": r["queue_name"],
            "priority": r["priority"],
            "reason": reasons.get(r["queue_name"]) if r["status"] == "pending" else None,
            "attempts": r["attempts"],
            "error": decode(r["error"]),
            "created_at": _time(r["created_at"]),
            "started_at": _time(r["started_at"]),
            "finished_at": _time(r["finished_at"]),
        }
        for r in opened
    ]
    return rows, (records[limit - 1]["turn"] if len(records) > limit else None)


FAMILY = 1000


async def tree(pool: Pool, run_id: str) -> dict[str, Any]:
    """The family of a run, from where it begins: children, runs that were started, forks and restarts.

    At most 1,000 `runs`, each with the run `above` it and its `relation` to that; `more` says that there are others.
    Raises `NotFound`.
    """
    root = await pool.fetchval(_SQL["family_root"], run_id)
    if root is None:
        raise NotFound(f"there is no run {run_id!r}", run_id=run_id)
    records = await pool.fetch(_SQL["family"], root, FAMILY + 1)
    errors = await open_columns(pool, records[:FAMILY], {"error": OUTCOME["error"]})
    found = [
        {
            "run_id": r["run_id"],
            "above": r["above"],
            "relation": r["relation"],
            "agent": r["agent_name"],
            "workflow": r["workflow"],
            "status": r["status"],
            "error": decode(r["error"]),
            "created_at": _time(r["created_at"]),
            "started_at": _time(r["started_at"]),
            "finished_at": _time(r["finished_at"]),
        }
        for r in (readable(record, "error") for record in errors)
    ]
    return {"run_id": run_id, "root": root, "runs": found, "more": len(records) > FAMILY}


async def send_signal(
    pool: Pool | Connection, run_id: str, name: str, payload: Any, signal_id: str | None
) -> asyncpg.Record:
    """Put a signal into a run's mailbox and wake the run if it waits for it; the run's place as a record.

    Raises `NotFound` for an unknown run and `Conflict` for one that has ended. The same `signal_id` again counts once,
    and is no conflict either when the run has ended meanwhile: its sender may not have heard that it came.
    """
    placed = (await send_signals(pool, [run_id], name, payload, signal_id))[run_id]
    if isinstance(placed, ApiError):
        raise placed
    return placed


async def send_signals(
    pool: Pool | Connection, run_ids: Sequence[str], name: str, payload: Any, signal_id: str | None
) -> dict[str, asyncpg.Record | ApiError]:
    """Put one signal into the mailboxes of several runs, in one commit; what `send_signal` says of each, or raises."""
    if not run_ids:
        return {}
    text = encode(payload, what="payload")
    stored = await vault_of(pool).put(pool, [(text, signal_spot(run_id, name)) for run_id in run_ids])
    for run_id in run_ids:
        reach("signal.before", run_id, name)
    records = await pool.fetch(_SQL["send_signals"], list(run_ids), name, stored, signal_id)
    for run_id in run_ids:
        reach("signal.after", run_id, name)
    placed: dict[str, asyncpg.Record | ApiError] = {
        run_id: NotFound(f"there is no run {run_id!r} to signal", run_id=run_id) for run_id in run_ids
    }
    for record in records:
        run_id, status = record["run_id"], record["status"]
        ended = status in TERMINAL and not record["known"]
        placed[run_id] = (
            Conflict(f"run {run_id} has ended {status}; it takes no signal", run_id=run_id) if ended else record
        )
    return placed


async def tell_parents(pool: Pool, nats: Client, children: Sequence[str]) -> None:
    """Wake the parents that wait for these ended children; nudge those that run."""
    reach("parents.before", children[0] if children else "")
    parents = await pool.fetch(_ENGINE["tell_parents"], list(children))
    reach("parents.after", children[0] if children else "")
    for parent in parents:
        if parent["woken"]:
            wake(nats, parent["run_id"], parent["agent_name"])
        elif parent["running"]:
            nudge(nats, parent["process_id"], parent["run_id"])


async def next_turns(pool: Pool | PooledConnection, nats: Client, sessions: Sequence[tuple[str, str]]) -> None:
    """Wake the first waiting turn of each session, given as (agent, session)."""
    agents, names = [agent for agent, _ in sessions], [name for _, name in sessions]
    for record in await pool.fetch(_ENGINE["next_turns"], agents, names):
        wake(nats, record["run_id"], record["agent_name"])


def wake(nats: Client, run_id: str, agent: str) -> None:
    """Send a wake-up; a lost one is repeated by the sweeper."""
    if nats.is_connected:
        publish_nowait(nats, subjects.work(agent), run_id.encode())


def nudge(nats: Client, process_id: str | None, run_id: str) -> None:
    """Tell the process that holds a run to look at it; it looks by itself every second anyway."""
    if process_id and nats.is_connected:
        publish_nowait(nats, subjects.process_nudge(process_id), run_id.encode())


def tell(nats: Client, run_id: str, agent: str, kind: str, seq: int) -> None:
    """An event about a run that no process holds."""
    if nats.is_connected:
        publish_nowait(nats, subjects.run_events(run_id), render(seq, kind, run_id, agent, datetime.now(UTC), b"{}"))


def tell_end(
    nats: Client, run_id: str, agent: str, status: str, seq: int, error: str | None, vault: Vault = PLAIN
) -> None:
    """The terminal event of a run that ended outside of any process, and the word to whoever asked."""
    if not nats.is_connected:
        return
    move = Move(status, error=error, end_seq=seq)
    event = render(seq, f"run.{status}", run_id, agent, datetime.now(UTC), end_data(None, error), vault)
    publish_nowait(nats, subjects.run_events(run_id), event)
    publish_nowait(nats, subjects.run_ended(agent, run_id), ended_payload(run_id, agent, move, look=vault.seals))
