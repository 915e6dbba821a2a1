"""Where the values of runs stand, and how rows come out of Postgres: opened, for all runs of a claim at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from perdure.engine.codec import encode
from perdure.engine.room import Room, TooBig
from perdure.store.queries import load_queries
from perdure.store.vault import Spot, Unreadable, Value, as_it_is, size_of_payload, vault_of

if TYPE_CHECKING:
    from perdure.engine.rows import ClaimedRun, JournalRow
    from perdure.store.vault import Database

Spots: TypeAlias = "Mapping[str, Callable[[Any], Spot]]"

_SQL = load_queries("payloads.sql")


def task_spot(run_id: str) -> Spot:
    """The task of a run."""
    return Spot("task", run_id)


def output_spot(run_id: str) -> Spot:
    """The output of a run."""
    return Spot("output", run_id)


def error_spot(run_id: str) -> Spot:
    """The error of a run."""
    return Spot("error", run_id)


def reason_spot(run_id: str) -> Spot:
    """Why a run is cancelled."""
    return Spot("reason", run_id)


def schedule_spot(name: str) -> Spot:
    """The task of a schedule."""
    return Spot("schedule", name)


def result_spot(run_id: str, seq: int, path: str) -> Spot:
    """The result in a journal row."""
    return Spot("result", run_id, f"{seq}/{path}")


def step_error_spot(run_id: str, seq: int, path: str) -> Spot:
    """The error in a journal row."""
    return Spot("step_error", run_id, f"{seq}/{path}")


def input_spot(run_id: str, seq: int, path: str) -> Spot:
    """What a step was called with, in its journal row."""
    return Spot("input", run_id, f"{seq}/{path}")


def signal_spot(run_id: str, name: str) -> Spot:
    """The payload of a signal."""
    return Spot("signal", run_id, name)


def readable(record: Mapping[str, Any], *columns: str) -> Mapping[str, Any]:
    """`record` for people: a column that could not be opened is None, and `error`, if it said nothing, says why."""
    bad = [column for column in columns if isinstance(record[column], Unreadable)]
    if not bad:
        return record
    said = encode({"type": "Unreadable", "message": str(record[bad[0]])}, what="error")
    error = said if record["error"] is None or "error" in bad else record["error"]
    return {**record, **dict.fromkeys(bad), "error": error}


OUTCOME: Spots = {
    "output": lambda record: output_spot(record["run_id"]),
    "error": lambda record: error_spot(record["run_id"]),
}
WHOLE: Spots = {**OUTCOME, "task": lambda record: task_spot(record["run_id"])}
"""The columns of a run that hold values, and where each stands."""
REASON: Spots = {"cancel_reason": lambda record: reason_spot(record["run_id"])}
SCHEDULE: Spots = {"task": lambda row: schedule_spot(row["name"])}


def step_spots(run_id: str) -> Spots:
    """The same for the journal rows of a run."""
    return {
        "result": lambda row: result_spot(run_id, row["seq"], row["path"]),
        "error": lambda row: step_error_spot(run_id, row["seq"], row["path"]),
    }


def shown_spots(run_id: str) -> Spots:
    """The same, with what steps were called with, which people see and no replay reads."""
    return {**step_spots(run_id), "input": lambda row: input_spot(run_id, row["seq"], row["path"])}


def unreadable(error: Unreadable) -> dict[str, str]:
    """What a run says that cannot go on because of `error`."""
    return {"type": "Unreadable", "message": f"{error}. Nothing is lost: mend it, then resume the run."}


async def open_claims(
    database: Database, runs: Sequence[ClaimedRun], histories: Mapping[str, Sequence[JournalRow]]
) -> dict[str, Unreadable]:
    """Open the tasks and the journals of claimed runs in place; those that cannot be read, by run id."""
    if (vault := vault_of(database)).seals:  # what they write later, and their events, shall not wait for a key
        await vault.ready([task_spot(run.run_id) for run in runs])
    rows = [(run_id, row) for run_id, history in histories.items() for row in history]
    own = [each for run in runs for each in (run.task, run.cancel_reason)]
    if as_it_is(own) and as_it_is(each for _, row in rows for each in (row.result, row.error)):
        return {}
    values: list[Value] = [(run.task, task_spot(run.run_id)) for run in runs]
    values += [(run.cancel_reason, reason_spot(run.run_id)) for run in runs]
    for run_id, row in rows:
        values.append((row.result, result_spot(run_id, row.seq, row.path)))
        values.append((row.error, step_error_spot(run_id, row.seq, row.path)))
    failed: dict[str, Unreadable] = {}
    texts: list[str | None] = []
    for text, (_, spot) in zip(await vault.try_open(database, values), values, strict=True):
        if isinstance(text, Unreadable):
            failed[spot.run_id] = text
        texts.append(None if isinstance(text, Unreadable) else text)
    opened = iter(texts)
    for run in runs:
        run.task = next(opened) or "null"
    for run in runs:
        run.cancel_reason = next(opened)
    for _, row in rows:
        row.result, row.error = next(opened), next(opened)
    return failed


async def copy_values(database: Database, origin: str, copy: str) -> None:
    """A copied run refers to the payloads of its origin; what is sealed is sealed anew, as values of the copy."""
    await database.execute(_SQL["share"], origin, copy)
    vault = vault_of(database)
    records = await database.fetch(_SQL["copied_values"], copy, not vault.seals)
    if not records:
        return
    before: list[Value] = []
    for record in records:
        before.extend(_spots_of(record, origin))
    texts = await vault.open(database, before)
    spots = [spot for record in records for _, spot in _spots_of(record, copy)]
    stored = await vault.put(database, list(zip(texts, spots, strict=True)))
    for record, result in zip(records, stored[::2], strict=True):
        if record["seq"] is None:
            await database.execute(_SQL["replace_task"], copy, result)
    rows = [(r["seq"], *pair) for r, *pair in zip(records, stored[::2], stored[1::2], strict=True) if r["seq"]]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    await database.execute(_SQL["replace_rows"], copy, *columns)


def _spots_of(record: Any, run_id: str) -> list[Value]:
    """The values of a row of `copied_values`: of a journal row, or the task."""
    if record["seq"] is None:
        return [(record["result"], task_spot(run_id)), (None, error_spot(run_id))]
    place = run_id, record["seq"], record["path"]
    return [(record["result"], result_spot(*place)), (record["error"], step_error_spot(*place))]


async def open_columns(
    database: Database, records: Sequence[Any], spots: Spots, room: Room | None = None
) -> list[Mapping[str, Any]]:
    """`records` with the columns of `spots` opened; an `Unreadable` stands where one cannot be.

    What is known to have no place in `room` is not even read: a `TooBig` stands there.
    """
    if as_it_is(record[column] for record in records for column in spots):
        return list(records)
    values = [(record[column], spot(record)) for record in records for column, spot in spots.items()]
    sizes = [0 if room is None else size_of_payload(text) for text, _ in values]
    big = {index for index, size in enumerate(sizes) if size and room is not None and not room.has(size)}
    wanted = [(None if index in big else text, spot) for index, (text, spot) in enumerate(values)]
    texts: list[Any] = list(await vault_of(database).try_open(database, wanted))
    for index in big:
        texts[index] = TooBig(sizes[index])
    opened = iter(texts)
    return [{**record, **{column: next(opened) for column in spots}} for record in records]
