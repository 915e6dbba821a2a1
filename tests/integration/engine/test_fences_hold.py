"""A run's journal takes rows from one holder: whoever claimed it last. Shown on the statements themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

import asyncpg
import pytest

from perdure.engine import journal as journals
from perdure.engine import runs
from perdure.engine.at_once import FENCED
from perdure.engine.commits import commit_moves, commit_rows
from perdure.engine.entries import Entry
from perdure.engine.journal import Journal
from perdure.engine.rows import JournalRow, Move
from perdure.store.postgres import Kept
from perdure.store.queries import load_queries

SQL = load_queries("engine.sql")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Holder:
    """A run under an epoch, as the journal sees it."""

    def __init__(self, run_id: str, epoch: int) -> None:
        self.run_id = run_id
        self.epoch = epoch


def row(seq: int, name: str) -> JournalRow:
    return JournalRow(seq, str(seq), "step", name, "h", "ok", '"x"', None, 1, None, None, 0, NOW, NOW)


def entry(holder: Holder, seq: int, name: str) -> Entry:
    return Entry(holder, row=row(seq, name))


@pytest.fixture
async def claim(pool):
    await pool.execute(
        "INSERT INTO processes (process_id, agent_name, instance_id, lock_key, postmaster_started, lease_until) "
        "VALUES ('p', 'a', 'p', 1, now(), now() + interval '1 hour')"
    )

    async def claim(run_id: str, connection=pool) -> Holder:
        if await pool.fetchval("SELECT 1 FROM runs WHERE run_id = $1", run_id) is None:
            await runs.accept(pool, [runs.new_start(run_id, "a", None)])
        said = ("p", [run_id], "a", "hash", 0, ["run"], [""], ["h"], [True], False)
        (record,) = await connection.fetch(SQL["claim"], *said)
        return Holder(run_id, record["epoch"])

    return claim


async def names(pool, run_id: str = "r") -> list[str]:
    return [r["name"] for r in await pool.fetch("SELECT name FROM journal WHERE run_id = $1 ORDER BY seq", run_id)]


async def test_a_row_of_an_earlier_epoch_is_refused_also_beside_a_row_of_the_newest(claim, pool):
    old = await claim("r")
    await pool.execute("UPDATE runs SET status = 'pending', epoch = epoch + 1 WHERE run_id = 'r'")
    new = await claim("r")
    # Both lives of the run in one process, in one batch, whichever comes first in it.
    assert await commit_rows(pool, [entry(old, 1, "old"), entry(new, 1, "new")]) == {("r", new.epoch)}
    assert await commit_rows(pool, [entry(new, 2, "new"), entry(old, 2, "old")]) == {("r", new.epoch)}
    assert await names(pool) == ["new", "new"]
    assert await commit_rows(pool, [entry(old, 3, "old")]) == set()
    assert await commit_moves(pool, [Entry(old, move=Move("completed", output="1", end_seq=9))], again=False) == {}
    moves = [Entry(old, move=Move("failed", end_seq=9)), Entry(new, move=Move("completed", output="1", end_seq=9))]
    assert await commit_moves(pool, moves, again=False) == {("r", new.epoch): False}
    assert await pool.fetchval("SELECT status FROM runs WHERE run_id = 'r'") == "completed"


async def test_a_row_written_while_a_claim_commits_is_in_the_claimers_history_or_refused(claim, pool):
    """The lock in `flush`: without it a row can land after the next holder has read the journal."""
    old = await claim("r")
    await pool.execute("UPDATE runs SET status = 'running' WHERE run_id = 'r'")
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        # A claimer has raised the epoch and not committed yet.
        await connection.execute("UPDATE runs SET epoch = epoch + 1 WHERE run_id = 'r'")
        late = asyncio.create_task(commit_rows(pool, [entry(old, 1, "late")]))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%held AS%'"
        while not late.done() and not await pool.fetchval(waiting):
            await asyncio.sleep(0.01)
        await transaction.commit()
    history = await pool.fetch(SQL["history"], ["r"], [0])
    assert await late == set()
    assert [r["name"] for r in history] == await names(pool) == []


async def end(pool, holder: Holder) -> int:
    return len(await commit_moves(pool, [Entry(holder, move=Move("completed", output="1", end_seq=9))], again=False))


async def wait(pool, holder: Holder) -> int:
    return len(await commit_moves(pool, [Entry(holder, move=Move("waiting", waiting_signals="s"))], again=False))


async def give_back(pool, holder: Holder) -> int:
    return len(await pool.fetch(SQL["release"], [holder.run_id], [holder.epoch]))


async def stand_on(pool, holder: Holder) -> int:
    said = await pool.execute(SQL["stand_on"], [holder.run_id], [holder.epoch], "newer", 7)
    return int(said.rsplit(" ", 1)[1])


async def write_at_once(pool, holder: Holder) -> int:
    """The row of a step that the statement writes which does its work."""
    said = (holder.run_id, holder.epoch, 1, "1", "step", "s", "h", 1, 0, 0.0, 0.0, "1")
    try:
        await pool.fetchval("SELECT journal_row($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)", *said)
    except asyncpg.PostgresError as error:
        if error.sqlstate != FENCED:
            raise
        return 0
    return 1


@pytest.mark.parametrize("act", [end, wait, give_back, stand_on, write_at_once])
async def test_what_else_a_holder_does_to_its_run_is_refused_once_another_has_it(claim, pool, act):
    old = await claim("r")
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("UPDATE runs SET epoch = epoch + 1, process_id = 'other' WHERE run_id = 'r'")
        late = asyncio.create_task(act(pool, old))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        while not late.done() and not await pool.fetchval(waiting):
            await asyncio.sleep(0.01)
        await transaction.commit()
    assert await late == 0, "it began before the other's claim was committed"
    assert await act(pool, old) == 0, "and after"
    left = await pool.fetchrow("SELECT status, epoch, process_id, config_hash FROM runs")
    assert tuple(left) == ("running", old.epoch + 1, "other", "hash")
    await pool.execute("UPDATE runs SET epoch = $1, status = 'paused'", old.epoch)
    assert await act(pool, old) == 0, "nor of a run that does not run"
    await pool.execute("UPDATE runs SET status = 'running'")
    assert await act(pool, old) == 1, "its holder does it"


async def test_no_row_is_written_once_the_run_has_ended(claim, pool):
    holder = await claim("r")
    await commit_moves(pool, [Entry(holder, move=Move("completed", output="1", end_seq=1))], again=False)
    assert await commit_rows(pool, [entry(holder, 1, "late")]) == set()


async def test_a_commit_whose_answer_was_lost_is_found_by_its_repeat(claim, pool):
    holder = await claim("r")
    assert await commit_rows(pool, [entry(holder, 1, "first")]) == {("r", 1)}
    assert await commit_rows(pool, [entry(holder, 1, "first")]) == {("r", 1)}
    end = Entry(holder, move=Move("completed", output="1", end_seq=2))
    assert await commit_moves(pool, [end], again=False) == {("r", 1): False}
    assert await commit_moves(pool, [end], again=True) == {("r", 1): False}
    assert await names(pool) == ["first"]


async def test_a_repeat_takes_neither_another_holders_end_nor_a_run_that_runs_for_its_own_first_try(claim, pool):
    old = await claim("r")
    await pool.execute("UPDATE runs SET status = 'pending', epoch = epoch + 1")
    new = await claim("r")
    before = [["r"], [new.epoch], ["completed"]]
    assert await pool.fetch(SQL["moved_before"], *before) == [], "it runs still"
    end = Move("completed", output="1", end_seq=2)
    assert await commit_moves(pool, [Entry(new, move=end)], again=False)
    assert await commit_moves(pool, [Entry(old, move=end)], again=True) == {}
    assert len(await pool.fetch(SQL["moved_before"], *before)) == 1


async def test_what_goes_with_a_row_or_a_move_goes_only_with_one_that_is_written(claim, pool):
    """The child that a row starts, the signal that it takes, and those that a new life is given back."""
    old = await claim("r")
    await runs.send_signal(pool, "r", "s", 1, None)
    seq = await pool.fetchval("SELECT seq FROM signals")
    await pool.execute("UPDATE runs SET status = 'pending', epoch = epoch + 1")
    new = await claim("r")
    child = runs.new_start("child", "a", 1, parent=("r", "1"))

    def taking(holder: Holder) -> Entry:
        return Entry(holder, row=replace(row(1, "s"), kind="signal", signal_seq=seq), start=child)

    async def left() -> tuple[bool, bool]:
        there = await pool.fetchval("SELECT EXISTS (SELECT FROM runs WHERE run_id = 'child')")
        return await pool.fetchval("SELECT consumed FROM signals"), there

    assert await commit_rows(pool, [taking(old)]) == set()
    assert await left() == (False, False)
    assert await commit_rows(pool, [taking(new)]) == {("r", new.epoch)}
    assert await left() == (True, True)
    again = Move("pending", task="2", base_seq=1, given_back=(seq,))
    assert await commit_moves(pool, [Entry(old, move=again)], again=False) == {}
    assert (await left())[0] is True, "its row is the new holder's"
    assert await commit_moves(pool, [Entry(new, move=again)], again=False)
    assert (await left())[0] is False


class Told(Holder):
    """A holder that notes what it is told."""

    def __init__(self, run_id: str, epoch: int, *, breaks: bool = False) -> None:
        super().__init__(run_id, epoch)
        self.breaks = breaks
        self.told: list[str] = []

    def _note(self, what: str) -> None:
        self.told.append(what)
        if self.breaks and what != "failed":
            raise ValueError("it fails at what it hears")

    def recorded(self, _row: JournalRow) -> None:
        self._note("recorded")

    def moved(self, _move: Move) -> None:
        self._note("moved")

    def fenced(self) -> None:
        self._note("fenced")

    def failed(self, _error: BaseException) -> None:
        self._note("failed")


async def test_each_hears_what_became_of_its_own_and_only_what_is_written_has_consequences(claim, pool):
    lives = [await claim("r")]
    await pool.execute("UPDATE runs SET status = 'pending', epoch = epoch + 1")
    lives.append(await claim("r"))
    old, new = (Told("r", each.epoch) for each in lives)
    broken = Told("other", (await claim("other")).epoch, breaks=True)
    followed: list[Entry] = []

    def follows(entries: Sequence[Entry]) -> None:
        followed.extend(entries)
        raise ValueError("what follows fails, too")

    journal = Journal(Kept(pool), follows)
    rows = [Entry(each, row=row(1, "s")) for each in (broken, old, new)]
    moves = [Entry(each, move=Move("completed", output="1", end_seq=2)) for each in (broken, old, new)]
    for batch in (rows, moves):
        await journal._write(batch)
    assert (old.told, new.told) == (["fenced", "fenced"], ["recorded", "moved"])
    assert broken.told == ["recorded", "failed", "moved", "failed"]
    assert followed == [rows[0], rows[2], moves[0], moves[2]]
    await journal.pool.release()


async def test_rows_that_cannot_be_written_for_no_known_reason_stop_their_runs(monkeypatch):
    monkeypatch.setattr(journals, "STRANGE_TRIES", 1)
    tries = []

    class Strange:
        def acquire(self) -> None:
            tries.append(1)
            raise RuntimeError("a fault of ours")

    one, other = Told("one", 1), Told("other", 1)
    journal = Journal(cast("Kept", Strange()), lambda _entries: None)
    await journal._write([Entry(one, row=row(1, "s")), Entry(other, move=Move("completed", end_seq=1))])
    assert (one.told, other.told, len(tries)) == (["failed"], ["fenced"], 4)


async def test_a_lost_answer_is_looked_for_among_the_rows_of_its_own_epoch(claim, pool):
    holder = await claim("r")
    await commit_rows(pool, [entry(holder, 1, "mine")])
    for epoch, found in ((holder.epoch, (True, '"x"')), (holder.epoch + 1, (False, None))):
        mine = "r", 1, epoch
        assert (await pool.fetchval(SQL["has_row"], *mine), await pool.fetchval(SQL["row_result"], *mine)) == found


async def test_who_holds_a_run_in_memory_hears_that_it_runs_here_no_more(claim, pool):
    await claim("r")
    assert await pool.fetch(SQL["asked_for"], ["r"]) == []
    await pool.execute("UPDATE runs SET status = 'pending', epoch = epoch + 1")
    (record,) = await pool.fetch(SQL["asked_for"], ["r"])
    assert (record["epoch"], record["running"]) == (2, False)


async def test_a_repeat_that_overtakes_its_first_try_finds_it_all_the_same(claim, pool):
    """The connection was lost, the server still works on the first try, and the second waits for its lock."""
    holder = await claim("r")
    end = Entry(holder, move=Move("completed", output="1", end_seq=2))
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("UPDATE runs SET status = 'completed', finished_at = now() WHERE run_id = 'r'")
        repeat = asyncio.create_task(commit_moves(pool, [end], again=True))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%moved AS%'"
        while not await pool.fetchval(waiting):
            await asyncio.sleep(0.01)
        await transaction.commit()
    assert await repeat == {("r", 1): False}


async def test_statements_that_lock_several_runs_lock_them_in_one_order(claim, pool):
    """Two batches in opposite order do not meet in a deadlock."""
    many = [await claim(f"r{n}") for n in range(40)]

    async def write(holders: list[Holder], first: int) -> None:
        for seq in range(first, first + 20):
            await commit_rows(pool, [entry(holder, seq, "x") for holder in holders])

    await asyncio.gather(write(many, 1), write(many[::-1], 100), write(many[::2] + many[1::2], 200))
    assert await pool.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert await pool.fetchval("SELECT count(*) FROM journal") == 40 * 60
