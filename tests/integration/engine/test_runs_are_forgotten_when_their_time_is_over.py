"""What ended long ago goes by whole partitions, what has not ended moves on, and a scheduler may die at any point."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import orjson
import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, points, runs, workflow
from perdure.errors import NotFound
from perdure.store.queries import load_queries
from services.scheduler.retention import Retention
from tests.engine_support import signal, until
from tests.platform import in_process
from tests.support import eventually

SQL = load_queries("retention.sql")
TABLES = ("runs", "journal", "signals", "callbacks", "approvals", "tool_starts", "payload_uses", "push_configs")


class Keeper(BaseAgent):
    name = "keeper"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        return await ctx.step("work", self.work, task)

    @workflow
    async def waits(self, ctx: Context, task: Any) -> Any:
        before = await ctx.step("before", self.work, task)
        said = await ctx.wait_signal("go")
        return [before, said, await ctx.step("after", self.work, task)]

    @workflow
    async def at_once(self, ctx: Context, task: Any) -> Any:
        return await ctx.wait_signal("go")

    @workflow
    async def lives(self, ctx: Context, task: int) -> Any:
        await ctx.step("life", self.work, task)
        if task < 3:
            ctx.continue_as_new(task + 1)
        return [task, await ctx.wait_signal("go")]

    @workflow
    async def parent(self, ctx: Context, task: Any) -> Any:
        out = await ctx.call("keeper", task, run_id="child")
        return [out, await ctx.wait_signal("go")]

    async def work(self, task: Any) -> Any:
        return task


async def age(pool, days: int) -> None:
    """All that there is happened `days` earlier, and the shelves of now are made anew."""
    await pool.execute("UPDATE runs SET finished_at = finished_at - $1 * interval '1 day'", days)
    await pool.execute(
        "UPDATE journal_shelves SET begins_at = begins_at - $1 * interval '1 day',"
        " ends_at = ends_at - $1 * interval '1 day'",
        days,
    )
    await pool.execute(SQL["make_shelves"])


async def set_row(pool, layer: str, key: str, value: str) -> None:
    await pool.execute(
        "INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ($1, $2, $3)"
        " ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = excluded.config_value",
        layer,
        key,
        value,
    )


async def partitions(pool) -> set[str]:
    found = await pool.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'journal'::regclass"
    )
    return {record["name"] for record in found}


async def left(pool, run_id: str) -> dict[str, int]:
    counts = {table: await pool.fetchval(f"SELECT count(*) FROM {table} WHERE run_id = $1", run_id) for table in TABLES}
    return {table: count for table, count in counts.items() if count}


async def shelf_of(pool, run_id: str) -> int:
    return await pool.fetchval("SELECT shelf FROM runs WHERE run_id = $1", run_id)


async def test_a_run_whose_time_is_over_goes_with_its_partition_and_is_not_found(settings, nc, pool):
    async with in_process(settings, nc, Keeper) as platform:
        await platform.ask("keeper", "x" * 400_000, run_id="old")
        await platform.ask("keeper", 1, run_id="young")
        shelf = await shelf_of(pool, "old")
        assert shelf > 0, "a scheduler has made the shelves ahead"
        assert await left(pool, "old") == {"runs": 1, "journal": 1, "payload_uses": 1}
        retention = Retention(pool, settings)
        await age(pool, 80)
        await retention.clean()
        assert await left(pool, "old"), "90 days unless somebody says otherwise"
        await age(pool, 40)
        await pool.execute("UPDATE runs SET finished_at = now() WHERE run_id = 'young'")
        await retention.clean()
        assert await left(pool, "old") == {}
        assert f"journal_{shelf}" not in await partitions(pool)
        assert await pool.fetchval("SELECT to_regclass('journal_' || $1::integer)", shelf) is None
        with pytest.raises(NotFound):
            await platform.run("old")
        kept = await platform.run("young")
        assert [step["result"] for step in kept["steps"]] == [1], "it has not ended long ago: it moved with its rows"


async def test_what_has_not_ended_moves_on_with_its_journal_and_ends_as_if_nothing_had_happened(settings, nc, pool):
    async with in_process(settings, nc, Keeper) as platform:
        for workflow_name in ("waits", "at_once", "lives"):
            await platform.start_run("keeper", 1, workflow=workflow_name, run_id=workflow_name)
            await until(platform, workflow_name, "waiting")
        rows = "SELECT * FROM journal WHERE run_id = $1 ORDER BY seq"
        before = [dict(row) for row in await pool.fetch(rows, "waits")]
        shelf = await shelf_of(pool, "waits")
        base = await pool.fetchval("SELECT base_seq FROM runs WHERE run_id = 'lives'")
        assert await pool.fetchval("SELECT count(*) FROM journal WHERE run_id = 'lives' AND seq <= $1", base)
        await age(pool, 200)
        await Retention(pool, settings).clean()
        assert f"journal_{shelf}" not in await partitions(pool)
        after = [dict(row) for row in await pool.fetch(rows, "waits")]
        target = await shelf_of(pool, "waits")
        assert target not in (0, shelf)
        assert after == [{**row, "shelf": target} for row in before], "every column of every row"
        assert not await pool.fetchval("SELECT count(*) FROM journal WHERE run_id = 'lives' AND seq <= $1", base), (
            "earlier lives of a run are over"
        )
        for run_id, output in (("waits", [1, "now", 1]), ("at_once", "now"), ("lives", [3, "now"])):
            await signal(platform, run_id, "go", "now")
            assert (await until(platform, run_id, "completed"))["output"] == output


async def test_a_scheduler_that_dies_at_any_point_loses_nothing(settings, nc, pool):
    async with in_process(settings, nc, Keeper) as platform:
        await platform.ask("keeper", 1, run_id="old")
        await platform.start_run("keeper", 1, workflow="waits", run_id="waits")
        await until(platform, "waits", "waiting")
        for at, point in enumerate(points.RETENTION):
            await platform.ask("keeper", 1, run_id=f"old-{at}")
            shelf = await shelf_of(pool, f"old-{at}")
            await age(pool, 200)

            def die(reached: str, _run_id: str, _name: str, point: str = point) -> None:
                if reached == point:
                    raise asyncio.CancelledError

            remove = points.install(die)
            try:
                with pytest.raises(asyncio.CancelledError):
                    await Retention(pool, settings).clean()
            finally:
                remove()
            assert [step["name"] for step in (await platform.run("waits"))["steps"]] == ["before"], point
            await Retention(pool, settings).clean()
            assert await left(pool, f"old-{at}") == {}, point
            assert f"journal_{shelf}" not in await partitions(pool), point
        await signal(platform, "waits", "go", "now")
        assert (await until(platform, "waits", "completed"))["output"] == [1, "now", 1]


async def test_a_drop_that_was_broken_off_leaves_the_shelf_and_the_next_one_takes_it(settings, nc, pool):
    async with in_process(settings, nc, Keeper) as platform:
        await platform.ask("keeper", 1, run_id="old")
        shelf = await shelf_of(pool, "old")
        await age(pool, 200)
        await platform.ask("keeper", 1, run_id="young")
        async with pool.acquire() as reader, reader.transaction():
            await reader.fetch("SELECT count(*) FROM journal")  # somebody's long look at the journal
            await Retention(pool, settings).clean()
        assert f"journal_{shelf}" in await partitions(pool), "nobody is waited for"
        victim = await asyncpg.connect(settings.database_url)
        try:
            broken_off = victim.transaction()
            await broken_off.start()
            assert await victim.fetchval(SQL["drop_shelf"], shelf)
            await pool.fetchval("SELECT pg_terminate_backend($1)", victim.get_server_pid())
        finally:
            victim.terminate()
        await eventually(lambda: pool.fetchval("SELECT count(*) = 1 FROM journal WHERE run_id = 'young'"))
        assert f"journal_{shelf}" in await partitions(pool)
        await Retention(pool, settings).clean()
        assert f"journal_{shelf}" not in await partitions(pool)
        assert [step["name"] for step in (await platform.run("young"))["steps"]] == ["work"]


async def test_an_id_that_is_used_again_has_nothing_of_the_forgotten_run(settings, nc, pool):
    async with in_process(settings, nc, Keeper) as platform:
        platform.services[-1].worker.linger = 0.0  # a run that waits is read from its journal
        await platform.ask("keeper", 1, run_id="again")
        await age(pool, 200)
        async with pool.acquire() as reader, reader.transaction():
            await reader.fetch("SELECT count(*) FROM journal")  # the shelf stays for now
            await Retention(pool, settings).clean()
        assert await left(pool, "again") == {"journal": 1}
        await platform.start_run("keeper", 2, workflow="waits", run_id="again")
        await until(platform, "again", "waiting")
        assert [step["name"] for step in (await platform.run("again"))["steps"]] == ["before"]
        await signal(platform, "again", "go", "now")
        assert (await until(platform, "again", "completed"))["output"] == [2, "now", 2]


async def test_a_forgotten_run_leaves_no_row_in_any_table_and_takes_none_of_another_along(pool):
    await runs.accept(pool, [runs.new_start(run_id, "keeper", 1) for run_id in ("gone", "stays")])
    await pool.execute(
        "INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, epoch, started_at, finished_at) "
        "SELECT run_id, 1, '1', 'step', 's', 'h', 'ok', 1, now(), now() FROM runs"
    )
    for more in (
        "signals (run_id, name, payload) SELECT run_id, 's', '1'",
        "callbacks (callback_id, run_id, end_seq, status, target) SELECT run_id, run_id, 1, 'failed', '{}'",
        "tool_starts (run_id, call_id) SELECT run_id, 'c'",
        "approvals SELECT run_id, 'c', 'a', 's', 't', '{}', 'h'",
        "payload_uses (run_id, hash) SELECT run_id, 'h'",
        "push_configs (run_id, config_id, url, secrets, form) SELECT run_id, 'c', 'u', '', '1.0'",
    ):
        await pool.execute(f"INSERT INTO {more} FROM runs")
    await pool.execute("UPDATE callbacks SET state = 'delivered'")
    await pool.execute("UPDATE runs SET status = 'failed', finished_at = now()")
    await pool.execute("UPDATE runs SET finished_at = now() - interval '200 days' WHERE run_id = 'gone'")
    assert len(await pool.fetch(SQL["forget"], ["gone", "stays"], True)) == 1
    assert await left(pool, "gone") == {}
    assert await left(pool, "stays") == dict.fromkeys(TABLES, 1)


async def test_a_shelf_that_a_run_stands_on_is_never_dropped(settings, nc, pool):
    async with in_process(settings, nc, Keeper) as platform:
        await platform.start_run("keeper", 1, workflow="waits", run_id="waits")
        await until(platform, "waits", "waiting")
        shelf = await shelf_of(pool, "waits")
        for each in (shelf, shelf + 1):  # the one of the next days is empty: runs are to come
            assert not await pool.fetchval(SQL["drop_shelf"], each), "its time is not over"
        await age(pool, 200)
        async with pool.acquire() as holder, holder.transaction():
            await holder.fetch("SELECT FROM runs WHERE run_id = 'waits' FOR NO KEY UPDATE")  # as whoever claims it
            await Retention(pool, settings).clean()
            assert await shelf_of(pool, "waits") == shelf, "a run that somebody works on is passed over"
        assert f"journal_{shelf}" in await partitions(pool)
        await signal(platform, "waits", "go", "now")
        assert (await until(platform, "waits", "completed"))["output"] == [1, "now", 1]
        assert await left(pool, "waits") == {"runs": 1, "journal": 3, "signals": 1}


async def test_two_schedulers_at_once_do_what_one_does(settings, nc, pool):
    async with in_process(settings, nc, Keeper) as platform:
        for n in range(12):
            await platform.start_run("keeper", n, workflow="waits" if n % 3 == 0 else "run", run_id=f"r-{n}")
        for n in range(12):
            await until(platform, f"r-{n}", "waiting" if n % 3 == 0 else "completed")
        await age(pool, 200)
        both = [Retention(pool, settings, page=2), Retention(pool, settings, page=3)]
        await asyncio.gather(*(each.make_ahead() for each in both), *(each.clean() for each in both))
        await both[0].clean()
        runs = {record["run_id"] for record in await pool.fetch("SELECT run_id FROM runs")}
        assert runs == {"r-0", "r-3", "r-6", "r-9"}
        for n in (0, 3, 6, 9):
            await signal(platform, f"r-{n}", "go", "now")
        for n in (0, 3, 6, 9):
            assert (await until(platform, f"r-{n}", "completed"))["output"] == [n, "now", n]


async def test_a_step_that_ends_while_its_run_moves_is_on_the_new_shelf(settings, nc, pool):
    """A writer that waits for the run's row finds the shelf in the row as it was locked."""
    go = asyncio.Event()

    class Slow(Keeper):
        name = "slow"

        @workflow
        async def steps(self, ctx: Context, task: Any) -> Any:
            for n in range(20):
                await ctx.step(f"s{n}", self.slow, n)
            return "done"

        async def slow(self, n: int) -> int:
            if n == 3:
                await go.wait()
            return n

    async with in_process(settings, nc, Slow) as platform:
        await platform.start_run("slow", 1, workflow="steps", run_id="r")
        await eventually(lambda: pool.fetchval("SELECT count(*) = 3 FROM journal WHERE run_id = 'r'"))
        await age(pool, 200)
        async with pool.acquire() as connection, connection.transaction():
            await connection.fetch(SQL["lock_shelf"], await shelf_of(pool, "r"), 100)
            go.set()
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            await eventually(lambda: pool.fetchval(waiting), message="the step's row waits for the run's row")
            await connection.execute(SQL["move_out"], ["r"])
        assert (await until(platform, "r", "completed"))["output"] == "done"
        await Retention(pool, settings).clean()
        names = [step["name"] for step in (await platform.run("r"))["steps"]]
        assert names == [f"s{n}" for n in range(20)]


async def test_the_setting_of_an_agent_counts_as_it_stands_now(settings, nc, pool):
    async with in_process(settings, nc, Keeper) as platform:
        await platform.ask("keeper", 1, run_id="r")
        await age(pool, 10)
        retention = Retention(pool, settings)
        await retention.clean()
        assert await left(pool, "r"), "90 days"
        await set_row(pool, "keeper", "retention_days", "not a number")
        await retention.clean()
        assert await left(pool, "r"), "a setting that is none leaves the good one"
        await set_row(pool, "keeper", "retention_days", "7")
        await set_row(pool, "*", "retention_days", "0")
        await retention.clean()
        assert await left(pool, "r") == {}, "it stood on a shelf of 90 days, and goes by itself"
        await retention.make_ahead()
        await platform.ask("keeper", 1, run_id="next")
        kept = "SELECT keep_days FROM journal_shelves AS s JOIN runs AS r USING (shelf) WHERE r.run_id = 'next'"
        assert await pool.fetchval(kept) == 7
        await pool.execute("DELETE FROM agent_configurations WHERE agent_name = 'keeper'")
        await age(pool, 400)
        await retention.clean()
        assert await left(pool, "next") == {"runs": 1, "journal": 1}, "for ever, says the setting of all"
        assert await shelf_of(pool, "next") == 0


async def test_a_child_is_kept_while_its_parent_may_ask_for_it(settings, nc, pool):
    async with in_process(settings, nc, Keeper) as platform:
        await platform.start_run("keeper", 1, workflow="parent", run_id="parent")
        await until(platform, "parent", "waiting")
        await eventually(lambda: pool.fetchval("SELECT parent_notified FROM runs WHERE run_id = 'child'"))
        await age(pool, 200)
        await Retention(pool, settings).clean()
        assert await left(pool, "child") == {"runs": 1, "journal": 1}
        await signal(platform, "parent", "go", 2)
        assert (await until(platform, "parent", "completed"))["output"] == [1, 2]
        await age(pool, 400)
        await Retention(pool, settings).clean()
        assert (await left(pool, "child"), await left(pool, "parent")) == ({}, {})


BIG = {"runs", "signals", "callbacks", "approvals", "tool_starts", "payload_uses"}


def scans(plan: dict[str, Any]) -> list[str]:
    table = plan["Relation Name"] if plan["Node Type"] == "Seq Scan" else ""
    here = [table] if table in BIG or (table.startswith("journal_") and table != "journal_shelves") else []
    return here + [each for part in plan.get("Plans", ()) for each in scans(part)]


async def test_nothing_of_it_reads_a_table_from_end_to_end(pool):
    await pool.execute(
        "INSERT INTO runs (run_id, agent_name, task, task_hash, status, shelf, finished_at, queue_name)"
        " SELECT 'r' || n, 'a' || n % 5, '1', 'h', 'completed', n % 3, now(), 'q' || n % 4"
        " FROM generate_series(1, 20000) AS n"
    )
    await pool.execute(
        "INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, epoch, started_at, finished_at, shelf)"
        " SELECT run_id, 1, '1', 'step', 's', 'h', 'ok', 1, now(), now(), shelf FROM runs"
    )
    for others in (
        "signals (run_id, name, payload) SELECT run_id, 's', '1' FROM runs",
        "callbacks (callback_id, run_id, end_seq, status, target) SELECT run_id, run_id, 1, 'failed', '{}' FROM runs",
        "approvals SELECT run_id, 'c', 'a', 's', 't', '{}', 'h' FROM runs",
        "tool_starts (run_id, call_id) SELECT run_id, 'c' FROM runs",
        "payload_uses (run_id, hash) SELECT run_id, 'h' FROM runs",
    ):
        await pool.execute(f"INSERT INTO {others}")
    await pool.execute("ANALYZE")
    statements = {
        "lock_shelf": (SQL["lock_shelf"], (1, 200)),
        "strays": (SQL["strays"], ()),
        "lock_strays": (SQL["lock_strays"], (0, "a1", 7, 200)),
        "forget": (SQL["forget"], (["r1", "r2"], True)),
        "move_out": (SQL["move_out"], (["r1", "r2"],)),
    }
    bad = {}
    async with pool.acquire() as connection:
        for name, (statement, arguments) in statements.items():
            text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
            if found := scans(orjson.loads(text)[0]["Plan"]):
                bad[name] = found
    assert bad == {}
