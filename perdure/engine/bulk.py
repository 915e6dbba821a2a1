"""One action on many runs, in pages: each page is bounded, so that progress shows and any page may be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from nats.aio.client import Client

from perdure.engine import control
from perdure.engine.codec import short_hash
from perdure.errors import ApiError, Conflict, InvalidRequest, NotFound
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from perdure.subjects import MARK, PLATFORM

if TYPE_CHECKING:
    from perdure.messages import RunBulk

_SQL = load_queries("control.sql")

AT_ONCE: Final = 4
COUNTED: Final = 100_000
LONGEST_TURN: Final = 19  # digits of a bigint
_ENDS: Final = ("pending", "running", "waiting", "paused", "blocked", "needs_review")
_CONCERNS: Final[dict[str, tuple[str, ...]]] = {
    "cancel": _ENDS,
    "terminate": _ENDS,
    "pause": ("pending", "running", "waiting"),
    "resume": ("paused", "failed", "dead", "blocked", "needs_review"),
    "restart": (),
    "signal": _ENDS,
}
_MUST_NAME: Final = frozenset({"resume", "restart"})


async def page(pool: Pool, nats: Client, said: RunBulk) -> dict[str, Any]:
    """Do what `said` asks to the next runs of its filter; or, for a dry run, count them all, up to 100,000.

    Runs that came after the first page was asked for are left alone; a dry run answers with the cursor to begin with.
    A run that the action does not fit (it has ended meanwhile) is `skipped`; other refusals are under `failed`. Raises
    `InvalidRequest` for a filter that says too little.
    """
    if said.filter.model_dump(exclude_none=True) == {} and not said.all:
        raise InvalidRequest("field 'filter' is empty: name what the runs have in common, or say \"all\": true")
    if said.name is not None and "\n" in said.name:
        raise InvalidRequest("field 'name': a signal's name is one line")
    if said.action in _MUST_NAME and said.filter.status is None:
        raise InvalidRequest(f"field 'filter.status': say in which states runs are to {said.action}, like [\"failed\"]")
    after, upto = await _place(pool, said.cursor)
    statuses: list[Any] = list(said.filter.status or _CONCERNS[said.action])
    if said.dry_run:
        found = await _find(pool, said, statuses, 0, upto, COUNTED + 1)
        return {
            "status": "success",
            "action": said.action,
            "matched": min(len(found), COUNTED),
            "more": len(found) > COUNTED,
            "next_cursor": f"0-{upto}",
        }
    found = await _find(pool, said, statuses, after, upto, said.limit + 1)
    rows, more = found[: said.limit], len(found) > said.limit
    results = await _do(pool, nats, said, upto, [run_id for _, run_id in rows])
    failed = [
        {"run_id": run_id, "error": {"code": error.code, "message": error.message}}
        for (_, run_id), error in zip(rows, results, strict=True)
        if error is not None and not isinstance(error, Conflict | NotFound)
    ]
    skipped = sum(isinstance(error, Conflict | NotFound) for error in results)
    return {
        "status": "success",
        "action": said.action,
        "done": len(rows) - skipped - len(failed),
        "skipped": skipped,
        "failed": failed,
        "next_cursor": f"{rows[-1][0]}-{upto}" if more else None,
    }


async def _place(pool: Pool, cursor: str | None) -> tuple[int, int]:
    """After which turn the page begins, and the last turn that there was when the first page was asked for."""
    if cursor is None:
        return 0, int(await pool.fetchval(_SQL["newest_turn"]))
    after, _, upto = cursor.partition("-")
    if not (after.isdecimal() and upto.isdecimal() and max(len(after), len(upto)) < LONGEST_TURN):
        raise InvalidRequest("field 'cursor': give the next_cursor of the page before, unchanged")
    return int(after), int(upto)


async def _find(
    pool: Pool, said: RunBulk, statuses: list[Any], after: int, upto: int, limit: int
) -> list[tuple[int, str]]:
    wanted = said.filter
    records = await pool.fetch(
        _SQL["matching" if said.tenant in (None, PLATFORM) else "matching_of_tenant"],
        after,
        upto,
        wanted.agent,
        statuses or None,
        wanted.workflow,
        wanted.version,
        wanted.session_id,
        wanted.created_after,
        wanted.created_before,
        limit,
        said.tenant,
    )
    return [(record["turn"], record["run_id"]) for record in records]


async def _do(pool: Pool, nats: Client, said: RunBulk, upto: int, run_ids: list[str]) -> list[ApiError | None]:
    if said.action == "signal":
        return await control.signal_many(pool, nats, run_ids, said.name or "", said.payload, said.id)
    gate = asyncio.Semaphore(AT_ONCE)
    act = _action(pool, nats, said, upto)
    return list(await asyncio.gather(*(_one(gate, act, run_id) for run_id in run_ids)))


def _action(pool: Pool, nats: Client, said: RunBulk, upto: int) -> Callable[[str], Awaitable[object]]:
    if said.action == "cancel":
        return lambda run_id: control.cancel(pool, nats, run_id, said.reason or "cancelled by request")
    if said.action == "terminate":
        return lambda run_id: control.terminate(pool, nats, run_id, said.reason or "terminated by request")
    if said.action == "pause":
        return lambda run_id: control.pause(pool, nats, run_id)
    if said.action == "resume":
        return lambda run_id: control.resume(pool, nats, run_id)
    # A page that is asked for again, because its answer was lost, restarts no run a second time.
    mark = "" if said.tenant in (None, PLATFORM) else f"{said.tenant}{MARK}"
    return lambda run_id: control.restart(pool, nats, run_id, f"{mark}r-{short_hash(run_id, str(upto))}")


async def _one(gate: asyncio.Semaphore, act: Callable[[str], Awaitable[object]], run_id: str) -> ApiError | None:
    async with gate:
        try:
            await act(run_id)
        except ApiError as error:
            return error
    return None
