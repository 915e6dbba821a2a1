"""Tool calls that wait for a person: durable, bound to the exact arguments, with who and when on record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import orjson
from nats.aio.client import Client

from perdure.agent.kept import APPROVAL, approval_spot, opened, sealed
from perdure.engine import Context, runs
from perdure.errors import Conflict, InvalidRequest, NotFound
from perdure.llm.types import ToolRequest
from perdure.messages import RunApprove
from perdure.store.postgres import Connection, Pool
from perdure.store.queries import load_queries

if TYPE_CHECKING:
    from perdure.agent.settings import AgentSettings

_SQL = load_queries("approvals.sql")
DAY = 86_400.0
_STATUS = {"approve": "approved", "deny": "denied", "edit": "edited"}


def arguments_hash(arguments: str) -> str:
    """The hash of a call's arguments, whatever the order of their keys: 64 hex digits."""
    canonical = orjson.dumps(orjson.loads(arguments), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a request: `approved`, `denied`, `edited` or `expired`; `arguments` (JSON text) are a person's."""

    status: str
    reason: str = ""
    by: str = ""
    arguments: str = ""


async def wait_for_person(
    ctx: Context, agent_name: str, session: str, call: ToolRequest, settings: AgentSettings, why: str
) -> Decision:
    """Ask, and wait as long as the configuration says, over restarts and without holding memory."""
    digest = arguments_hash(call.arguments)
    seconds = settings.approval_timeout_seconds or DAY
    run_id = ctx.run_id

    async def request(connection: Connection, call_id: str, tool: str, arguments: str, digest: str) -> None:
        kept = await sealed(connection, arguments, approval_spot("arguments", run_id, call_id))
        asked = await sealed(connection, why or None, approval_spot("reason_asked", run_id, call_id))
        await connection.execute(
            _SQL["request"], run_id, call_id, agent_name, session, tool, kept, digest, asked, seconds
        )

    async def expire(connection: Connection, call_id: str) -> Decision:
        row = await connection.fetchrow(_SQL["expire"], run_id, call_id)
        if row is None:
            return Decision("expired")
        spots = {name: APPROVAL[name] for name in ("edited", "reason")}
        [shown] = await opened(connection, [{**row, "run_id": run_id, "call_id": call_id}], spots)
        return _of_row(shown)

    await ctx.transaction("approval:request", request, call.id, call.name, call.arguments, digest)
    await ctx.emit(
        {
            "call_id": call.id,
            "tool": call.name,
            "arguments": orjson.loads(call.arguments),
            "arguments_hash": digest,
            "reason": why,
            "timeout": seconds,
        },
        type="approval.requested",
    )
    try:
        said = await ctx.wait_signal(f"approval:{call.id}", timeout=seconds)
        return Decision(said["status"], said.get("reason") or "", said.get("by") or "", said.get("arguments") or "")
    except TimeoutError:
        decision = await ctx.transaction("approval:expire", expire, call.id)
    if decision.status == "expired" and settings.approval_on_timeout == "approve":
        return Decision("approved", "nobody decided in time, and the configuration approves then")
    return decision


def _of_row(row: Any) -> Decision:
    return Decision(row["status"], row["reason"] or "", row["decided_by"] or "", row["edited"] or "")


async def decide(pool: Pool, nats: Client, said: RunApprove) -> dict[str, Any]:
    """Record a decision and wake the run; the reply of `run.approve`.

    Raises `NotFound` for a call that never asked, `Conflict` for a second decision, other arguments, or a run that has
    ended, and `InvalidRequest` for an edit without arguments.
    """
    if (said.decision == "edit") != (said.arguments is not None):
        raise InvalidRequest("field 'arguments': they belong to the decision 'edit', and only to it")
    edited = None if said.arguments is None else orjson.dumps(said.arguments).decode()
    status = _STATUS[said.decision]
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(
            _SQL["decide"],
            said.run_id,
            said.call_id,
            said.arguments_hash,
            status,
            await sealed(connection, edited, approval_spot("edited", said.run_id, said.call_id)),
            await sealed(connection, said.reason, approval_spot("reason", said.run_id, said.call_id)),
            said.decided_by,
        )
        if row is None:
            raise NotFound(
                f"run {said.run_id} has no call {said.call_id!r} that waits for approval", run_id=said.run_id
            )
        if not row["decided"]:
            if row["status"] != "pending":
                raise Conflict(f"call {said.call_id} is {row['status']} already", run_id=said.run_id)
            raise Conflict(
                f"arguments_hash is not that of call {said.call_id}: look at its arguments again", run_id=said.run_id
            )
        payload = {"status": status, "reason": said.reason, "by": said.decided_by, "arguments": edited}
        # in the same commit: a decision that is recorded reaches its run
        record = await runs.send_signal(
            cast("Connection", connection), said.run_id, f"approval:{said.call_id}", payload, f"approval:{said.call_id}"
        )
    if record["woken"]:
        runs.wake(nats, said.run_id, record["agent_name"])
    elif record["status"] == "running":
        runs.nudge(nats, record["process_id"], said.run_id)
    return {"status": status, "run_id": said.run_id, "agent": record["agent_name"], "call_id": said.call_id}


async def listed(
    pool: Pool,
    *,
    status: str | None = "pending",
    agent: str | None = None,
    run_id: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> tuple[list[dict[str, Any]], str | None]:
    """Approvals, newest first, and the cursor of the next page. Raises `InvalidRequest` for a cursor that is none."""
    moment, call_id = None, None
    if cursor is not None:
        said, _, call_id = cursor.partition("/")
        try:
            moment = datetime.fromisoformat(said)
        except ValueError:
            raise InvalidRequest("field 'cursor': give the next_cursor of the page before, unchanged") from None
    rows = await pool.fetch(_SQL["list"], status, agent, run_id, moment, call_id, limit + 1)
    shown = [_shown(row) for row in await opened(pool, rows[:limit], APPROVAL)]
    more = len(rows) > limit
    return shown, f"{shown[-1]['requested_at']}/{shown[-1]['call_id']}" if more else None


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    def time(value: datetime | None) -> str | None:
        return None if value is None else value.isoformat()

    shown: Mapping[str, Any] = {
        "run_id": row["run_id"],
        "call_id": row["call_id"],
        "agent": row["agent_name"],
        "session_id": row["session_id"],
        "tool": row["tool"],
        "arguments": orjson.loads(row["arguments"]),
        "arguments_hash": row["arguments_hash"],
        "reason_asked": row["reason_asked"],
        "status": row["status"],
        "edited": None if row["edited"] is None else orjson.loads(row["edited"]),
        "reason": row["reason"],
        "decided_by": row["decided_by"],
        "requested_at": time(row["requested_at"]),
        "expires_at": time(row["expires_at"]),
        "decided_at": time(row["decided_at"]),
    }
    return dict(shown)
