"""The statements of a journal commit: rows under their fences, and runs that leave `running`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from perdure.engine.accepting import insert_starts, said
from perdure.engine.entries import Entry, Place
from perdure.engine.points import reach
from perdure.engine.rows import JournalRow, Start
from perdure.engine.stored import error_spot, input_spot, output_spot, result_spot, step_error_spot, task_spot
from perdure.store.postgres import Kept, Pool, PooledConnection
from perdure.store.queries import load_queries
from perdure.store.vault import Value, vault_of

_SQL = load_queries("engine.sql")
_RUNS = load_queries("runs.sql")


async def commit_rows(pool: Pool | Kept, entries: Sequence[Entry]) -> set[Place]:
    """One commit: rows, the children they start, the snapshots they name and the signals they consume."""
    more = any(e.start or e.snapshot or (e.row and e.row.signal_seq is not None) for e in entries)
    async with pool.acquire() as connection:
        if not more:
            return await write_rows(connection, entries)
        async with connection.transaction():
            held = await write_rows(connection, entries)
            reach("commit.rows")
            allowed = [entry for entry in entries if entry.place in held]
            await _keep(connection, allowed)
            await _write_starts(connection, [entry.start for entry in allowed if entry.start is not None])
            await _consume(connection, allowed)
            reach("commit.written")
        return held


async def commit_moves(pool: Pool | Kept, entries: Sequence[Entry], *, again: bool) -> dict[Place, bool]:
    """One commit: the places that moved, and whether others than its parent wait for the run's end.

    `again` says that an earlier try may have been committed without an answer.
    """
    waiting = [entry for entry in entries if entry.move is not None and entry.move.status in ("waiting", "paused")]
    giving_back = [entry for entry in entries if entry.move is not None and entry.move.given_back]
    async with pool.acquire() as connection:
        if waiting or giving_back:
            async with connection.transaction():
                done = await _move(connection, entries)
                reach("move.written")
                await _give_back(connection, [entry for entry in giving_back if entry.place in done])
                if waiting:
                    await _recheck(connection, [entry for entry in waiting if entry.place in done])
        else:
            done = await _move(connection, entries)
        if again and len(done) < len(entries):
            done |= await _moved_before(connection, [entry for entry in entries if entry.place not in done])
    return done


async def write_rows(connection: PooledConnection, entries: Sequence[Entry]) -> set[Place]:
    """Insert the rows of `entries` under their fences; the places that this process still holds."""
    entries = [entry for entry in entries if entry.row is not None]
    places = [entry.place for entry in entries]
    rows = [entry.row for entry in entries if entry.row is not None]
    held = sorted(set(places))
    fences = {place: number for number, place in enumerate(held, start=1)}
    results, errors = await _stored_rows(connection, places, rows)
    inputs = await _inputs(connection, places, rows)
    records = await connection.fetch(
        _SQL["flush"],
        _lines([run_id for run_id, _ in held]),
        _numbers([epoch for _, epoch in held]),
        _numbers([fences[place] for place in places]),
        _numbers([row.seq for row in rows]),
        _lines([row.path for row in rows]),
        _lines([row.name for row in rows]),
        _lines([row.hash for row in rows]),
        _lines([_one_line(text) for text in results]),
        _numbers([row.config_revision for row in rows]),
        _numbers([round(row.started_at.timestamp() * 1_000_000) for row in rows]),
        _numbers([round(row.finished_at.timestamp() * 1_000_000) for row in rows]),
        *(_NOTHING_MORE if all(map(_plain, rows)) else _more(rows, errors)),
        inputs,
        _flags([entry.first for entry in entries]),
    )
    if len(records) == len(held):
        return set(held)
    return {(record["run_id"], record["epoch"]) for record in records}


def _lines(texts: Sequence[str]) -> str:
    """A column of texts, as `flush` takes it. Raises `ValueError` for one that would be two."""
    joined = "\n".join(texts)
    if joined.count("\n") != len(texts) - 1:
        raise ValueError(f"a line break in one of {texts!r:.500}")
    return joined


def _numbers(numbers: Sequence[int | None]) -> str:
    """A column of numbers, as `flush` takes it."""
    return "{" + ",".join(["NULL" if number is None else str(number) for number in numbers]) + "}"


def _flags(flags: Sequence[bool]) -> str:
    """A column of truth values, as `flush` takes it; all of them are false when it is empty."""
    return "{" + ",".join(["t" if flag else "f" for flag in flags]) + "}" if any(flags) else "{}"


def _one_line(text: str | None) -> str:
    """JSON in one line, as what this process encodes is; "" is none. Others may have sent it as they like."""
    return "" if text is None else text.replace("\n", " ")  # only between values: no text of JSON has a line break


_NOTHING_MORE: Final[tuple[list[Any], ...]] = ([],) * 6


def _plain(row: JournalRow) -> bool:
    """Whether it is a step that went well at its first attempt: then its other columns say nothing."""
    return (
        row.kind == "step"
        and row.outcome == "ok"
        and row.attempt == 1
        and row.due_at is None
        and row.signal_seq is None
    )


def _more(rows: Sequence[JournalRow], errors: list[str | None]) -> tuple[list[Any], ...]:
    return (
        [row.kind for row in rows],
        [row.outcome for row in rows],
        errors,
        [row.attempt for row in rows],
        [row.due_at for row in rows],
        [row.signal_seq for row in rows],
    )


async def _stored_rows(
    connection: PooledConnection, places: Sequence[Place], rows: Sequence[JournalRow]
) -> tuple[list[str | None], list[str | None]]:
    """Results and errors as their columns hold them; what is large is put first."""
    results, errors = [row.result for row in rows], [row.error for row in rows]
    vault = vault_of(connection)
    if vault.plain(results) and vault.plain(errors):
        return results, errors
    wanted: list[Value] = []
    for (run_id, _), row in zip(places, rows, strict=True):
        wanted.append((row.result, result_spot(run_id, row.seq, row.path)))
        wanted.append((row.error, step_error_spot(run_id, row.seq, row.path)))
    stored = await vault.put(connection, wanted)
    return stored[::2], stored[1::2]


async def _inputs(connection: PooledConnection, places: Sequence[Place], rows: Sequence[JournalRow]) -> str:
    """The column of what steps were called with; "" when that says nothing."""
    texts = [row.input for row in rows]
    if not any(texts):
        return ""
    if not vault_of(connection).plain(texts):
        spots = [input_spot(run_id, row.seq, row.path) for (run_id, _), row in zip(places, rows, strict=True)]
        texts = await vault_of(connection).put(connection, list(zip(texts, spots, strict=True)))
    return _lines([text or "" for text in texts])


async def _stored_moves(
    connection: PooledConnection, entries: Sequence[Entry]
) -> tuple[list[str | None], list[str | None], list[str | None]]:
    """Outputs, errors and new tasks as their columns hold them; what is large is put first."""
    moves = [(entry.writer.run_id, entry.move) for entry in entries if entry.move is not None]
    plain = [move.output for _, move in moves], [move.error for _, move in moves], [move.task for _, move in moves]
    vault = vault_of(connection)
    if all(vault.plain(texts) for texts in plain):
        return plain
    wanted: list[Value] = []
    for run_id, move in moves:
        wanted.append((move.output, output_spot(run_id)))
        wanted.append((move.error, error_spot(run_id)))
        wanted.append((move.task, task_spot(run_id)))
    stored = await vault.put(connection, wanted)
    return stored[::3], stored[1::3], stored[2::3]


async def _write_starts(connection: PooledConnection, starts: list[Start]) -> None:
    if not starts:
        return
    sessions = [f"{start.agent_name}/{start.session_id}" for start in starts if start.session_id]
    if sessions:
        await connection.execute(_RUNS["lock_sessions"], sessions)
    made = await insert_starts(connection, starts)
    there = [start.run_id for start in starts if start.run_id not in made and start.parent_run_id is not None]
    if there:
        await connection.execute(_SQL["join_children"], there)


async def _keep(connection: PooledConnection, entries: Sequence[Entry]) -> None:
    for snapshot in {entry.snapshot for entry in entries if entry.snapshot is not None}:
        await connection.execute(
            _SQL["keep_snapshot"], snapshot.agent_name, snapshot.hash, snapshot.revision, snapshot.values
        )


async def _consume(connection: PooledConnection, entries: Sequence[Entry]) -> None:
    pairs = [(e.writer.run_id, e.row.signal_seq) for e in entries if e.row is not None and e.row.signal_seq is not None]
    if pairs:
        await connection.execute(_SQL["consume_signals"], [run_id for run_id, _ in pairs], [seq for _, seq in pairs])


async def _move(connection: PooledConnection, entries: Sequence[Entry]) -> dict[Place, bool]:
    moves = [entry.move for entry in entries if entry.move is not None]
    outputs, errors, tasks = await _stored_moves(connection, entries)
    records = await connection.fetch(
        _SQL["move"],
        [entry.writer.run_id for entry in entries],
        [entry.writer.epoch for entry in entries],
        [move.status for move in moves],
        outputs,
        said(errors),
        said([move.wake_at for move in moves]),
        said([move.waiting_signals for move in moves]),
        said([move.waiting_children for move in moves]),
        [move.end_seq for move in moves],
        said(tasks),
        said([move.base_seq for move in moves]),
    )
    if paused := {(record["run_id"], record["epoch"]) for record in records if record["status"] == "paused"}:
        for entry in entries:
            if entry.move is not None and entry.place in paused:
                entry.move.status = "paused"  # also where it would have waited: somebody asked meanwhile
    return {(record["run_id"], record["epoch"]): record["joined"] for record in records}


async def _give_back(connection: PooledConnection, entries: Sequence[Entry]) -> None:
    pairs = [(e.writer.run_id, seq) for e in entries if e.move is not None for seq in e.move.given_back]
    if pairs:
        await connection.execute(_SQL["give_back_signals"], [run_id for run_id, _ in pairs], [seq for _, seq in pairs])


async def _recheck(connection: PooledConnection, waiting: Sequence[Entry]) -> None:
    """What came between a run's last look and its wait wakes it here, in the commit that makes it wait."""
    children = [entry.move.waiting_children for entry in waiting if entry.move and entry.move.waiting_children]
    if children:
        await connection.execute(_SQL["lock_joined"], [child for each in children for child in each.split("\n")])
    records = await connection.fetch(_SQL["recheck_waits"], [entry.writer.run_id for entry in waiting])
    woken = {record["run_id"] for record in records}
    for entry in waiting:
        entry.woken = entry.writer.run_id in woken


async def _moved_before(connection: PooledConnection, entries: Sequence[Entry]) -> dict[Place, bool]:
    records = await connection.fetch(
        _SQL["moved_before"],
        [entry.writer.run_id for entry in entries],
        [entry.writer.epoch for entry in entries],
        [entry.move.status for entry in entries if entry.move is not None],
    )
    return {(record["run_id"], record["epoch"]): record["joined"] for record in records}
