from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, workflow
from perdure.errors import PermanentError, StepFailed
from tests.engine_support import until
from tests.platform import in_process

TABLES = """
CREATE TABLE effects (run_id text, n integer);
CREATE SEQUENCE commits;
CREATE FUNCTION die_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.n = 13 AND nextval('commits') <= 4 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
  RETURN NEW;
END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION die_at_commit();
"""


class Booking(BaseAgent):
    name = "booking"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.calls = 0

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        await ctx.step("first", self.nothing)
        try:
            booked = await ctx.transaction("book", self.book, ctx.run_id, task, retry=Retry(max_attempts=2, delay=0.0))
        except (StepFailed, TypeError) as error:
            booked = [type(error).__name__, str(error)]
        return [booked, await ctx.step("last", self.nothing)]

    async def book(self, connection: Any, run_id: str, task: dict) -> Any:
        self.calls += 1
        await connection.execute("INSERT INTO effects VALUES ($1, $2)", run_id, task["n"])
        if task.get("fail"):
            raise PermanentError("no")
        if task.get("break"):
            await connection.execute("SELECT 1 / 0")
        if task.get("send"):
            return {"it": object()}
        if task.get("lose"):
            await connection.execute("UPDATE runs SET epoch = epoch + 1, status = 'pending' WHERE run_id = $1", run_id)
        return task["n"]

    async def nothing(self) -> None:
        return None


@pytest.fixture
async def booking(settings, nc, pool):
    await pool.execute(TABLES)
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Booking)


async def book(platform, pool, task: dict) -> tuple[Any, int, list[str]]:
    """(the output, how often the user's row is there, the steps that have succeeded)."""
    run_id = await platform.start_run("booking", task)
    run = await until(platform, run_id, "completed", "failed", "needs_review")
    assert run["status"] == "completed", run["error"]
    steps = [step["name"] for step in run["steps"] if step["status"] == "completed"]
    seqs = [step["seq"] for step in run["steps"]]
    assert len(set(seqs)) == len(seqs)
    return run["output"][0], await pool.fetchval("SELECT count(*) FROM effects WHERE run_id = $1", run_id), steps


async def test_the_users_sql_and_the_journal_row_are_there_together_or_not_at_all(booking, pool):
    platform, _ = booking
    assert await book(platform, pool, {"n": 1}) == (1, 1, ["first", "book", "last"])
    output, effects, steps = await book(platform, pool, {"n": 2, "fail": True})
    assert (output[0], effects, steps) == ("StepFailed", 0, ["first", "last"])
    output, effects, steps = await book(platform, pool, {"n": 3, "break": True})
    assert (output[0], effects, steps) == ("StepFailed", 0, ["first", "last"])
    assert "after 2 attempt(s)" in output[1]
    output, effects, steps = await book(platform, pool, {"n": 4, "send": True})
    assert (output[0], effects, steps) == ("TypeError", 0, ["first", "last"])
    assert "transaction 'book'.it is a object" in output[1]


async def test_a_connection_killed_at_commit_is_no_attempt_and_no_effect(booking, pool):
    platform, process = booking
    assert await book(platform, pool, {"n": 13}) == (13, 1, ["first", "book", "last"])
    assert process.agent.calls == 5, "four connections died, and the policy allows two attempts"


async def test_a_commit_whose_answer_was_lost_is_not_made_twice(booking, pool, monkeypatch):
    platform, process = booking
    real = process.worker.connections

    class Losing:
        """Every transaction's connection is lost after its commit."""

        lost = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        @asynccontextmanager
        async def acquire(self):
            async with real.acquire() as connection:
                yield connection
            self.lost += 1
            raise ConnectionResetError("the answer is lost")

    losing = Losing()
    monkeypatch.setattr(process.worker, "connections", losing)
    assert await book(platform, pool, {"n": 5}) == (5, 1, ["first", "book", "last"])
    assert (losing.lost, process.agent.calls) == (1, 1)


async def test_a_holder_that_was_fenced_commits_nothing(booking, pool):
    platform, process = booking
    run_id = await platform.start_run("booking", {"n": 6, "lose": True})
    # `lose` moves the epoch inside the very transaction: the fence at its end refuses, and takes the user's SQL along.
    from tests.support import eventually

    await eventually(lambda: process.worker.fences > 0)
    assert await pool.fetchval("SELECT count(*) FROM effects WHERE run_id = $1", run_id) == 0
    assert run_id not in process.worker.executions
