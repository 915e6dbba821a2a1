"""Lists, trees and views of runs; the queries that documents show are executed."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure import Client
from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, runs, workflow
from perdure.engine.start_options import StartOptions
from perdure.errors import InvalidRequest, NotFound, StepFailed
from tests.docs import ROOT, blocks
from tests.engine_support import until
from tests.platform import in_process

SQL = [block.text for block in blocks(ROOT / "docs" / "how-to" / "look-inside.md") if block.language == "sql"]


class Shown(BaseAgent):
    name = "shown"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        await ctx.step("plain", self.work)
        await ctx.step("called", self.work, 1, {"who": "Eva"}, hint="soon")
        await ctx.step("odd", self.work, object(), "ü\n")
        await ctx.step("long", self.work, "x" * 5000)
        await ctx.transaction("sql", self.sql, 7)
        with contextlib.suppress(StepFailed):
            await ctx.step("fails", self.fails, "a", retry=Retry(max_attempts=1))
        return await ctx.step("asks", self.asks)

    async def work(self, *given: Any, **named: Any) -> None: ...

    async def sql(self, connection: Any, number: int) -> None: ...

    async def fails(self, said: str) -> None:
        raise ValueError(said)

    async def asks(self) -> dict[str, int]:
        return {"input_tokens": 12, "output_tokens": 3}


class Family(BaseAgent):
    name = "family"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        await ctx.start("family", {}, workflow="leaf", run_id="started")
        return await ctx.call("family", {}, workflow="child", run_id="child")

    @workflow
    async def child(self, ctx: Context, task: dict) -> Any:
        await ctx.step("tried", self.tried, retry=Retry(max_attempts=2, delay=0.01))
        return await ctx.call("family", {}, workflow="leaf", run_id="grandchild")

    @workflow(version="2")
    async def leaf(self, ctx: Context, task: dict) -> Any:
        return await ctx.step("leaf", self.leafy)

    @workflow
    async def waits(self, ctx: Context, task: dict) -> Any:
        return await ctx.wait_signal("go", timeout=3600)

    async def tried(self) -> int:
        self.tries = getattr(self, "tries", 0) + 1
        if self.tries == 1:
            raise OSError("busy")
        return self.tries

    async def leafy(self) -> dict[str, int]:
        return {"input_tokens": 12, "output_tokens": 3}


@pytest.fixture
async def family(settings, nc):
    async with in_process(settings, nc, Family) as platform:
        await platform.start_run("family", {}, run_id="top")
        await until(platform, "top", "completed")
        await until(platform, "started", "completed")
        await platform.request("run.restart", {"run_id": "child", "new_run_id": "again"})
        await until(platform, "again", "completed", "failed")
        waits = await platform.start_run("family", {}, workflow="waits", run_id="waits")
        await until(platform, waits, "waiting")
        await platform.request("run.signal", {"run_id": waits, "name": "other", "payload": 1})
        yield platform


async def test_the_tree_of_a_run_is_the_same_from_each_of_its_runs(family, settings):
    async with Client(settings) as client:
        trees = [await (await client.get(run_id)).tree() for run_id in ("top", "grandchild", "again")]
    for tree in trees:
        assert (tree["root"], tree["more"]) == ("top", False)
        places = {run["run_id"]: (run["above"], run["relation"]) for run in tree["runs"]}
        assert places["top"] == (None, "root")
        assert places["child"] == ("top", "child")
        assert places["grandchild"] == ("child", "child")
        assert places["again"] == ("child", "restart")
    assert {run["run_id"]: run["status"] for run in trees[0]["runs"]}["child"] == "completed"
    with pytest.raises(NotFound):
        await family.request("run.tree", {"run_id": "nothing"})


async def test_a_run_that_was_only_started_is_in_the_tree_of_who_started_it(family):
    tree = await family.request("run.tree", {"run_id": "top"})
    assert ("started", "top", "started") in {(r["run_id"], r["above"], r["relation"]) for r in tree["runs"]}


async def test_a_step_shows_what_it_was_called_with_and_who_ran_it(settings, nc, pool):
    async with in_process(settings, nc, Shown) as platform:
        await platform.ask("shown", {}, run_id="r")
        run = await platform.run("r")
        shown = {step["name"]: step for step in run["steps"] if step["kind"] in ("step", "transaction")}
        assert {name: step["input"] for name, step in shown.items()} == {
            "plain": None,
            "called": {"args": [1, {"who": "Eva"}], "kwargs": {"hint": "soon"}},
            "odd": {"args": ["<builtins.object>", "ü\n"]},
            "long": {"bytes": 5013},
            "sql": {"args": [7]},
            "fails": {"args": ["a"]},
            "asks": None,
        }
        (process,) = {step["process_id"] for step in shown.values()}
        assert process == await pool.fetchval("SELECT process_id FROM processes")
        assert shown["asks"]["tokens"] == {"input": 12, "output": 3}
        assert "tokens" not in shown["called"]
        by_sql = await pool.fetchrow("SELECT input, process FROM run_steps WHERE name = 'sql'")
        assert tuple(by_sql) == ('{"args":[7]}', process)


async def test_lists_are_filtered_and_come_in_pages(family, settings):
    async with Client(settings) as client:
        seen: list[str] = []
        cursor = None
        while True:
            page = await client.list(agent="family", status=["completed"], limit=2, cursor=cursor)
            seen += [run["run_id"] for run in page.runs]
            if (cursor := page.next_cursor) is None:
                break
        assert len(seen) == len(set(seen)) == 5
        leaves = await client.list(workflow="leaf", version="2")
        assert {run["run_id"] for run in leaves.runs} == {"grandchild", "started"}
        now = datetime.now(UTC)
        assert (await client.list(created_after=now + timedelta(hours=1))).runs == []
        assert len((await client.list(created_before=now + timedelta(hours=1), limit=500)).runs) == 6
        with pytest.raises(InvalidRequest, match="created_after"):
            await client.list(created_after=datetime(2026, 1, 1))  # noqa: DTZ001 -- that is what is wrong with it
        with pytest.raises(InvalidRequest, match="status"):
            await client.list(status=["lost"])


async def test_each_filter_of_a_list_leaves_the_others_out(pool):
    mine = runs.new_start("mine", "a", 1, workflow="w", session_id="s", parent=("p", "1"), options=StartOptions("q"))
    for start in (mine, runs.new_start("other", "b", 1)):
        await runs.accept(pool, [start])
    await pool.execute("UPDATE runs SET version = '2', created_at = '2026-01-01Z' WHERE agent_name = 'a'")
    await pool.execute("UPDATE runs SET status = 'failed' WHERE agent_name = 'a'")
    await pool.execute("UPDATE runs SET version = '1', created_at = '2026-01-03Z' WHERE agent_name = 'b'")
    first, last = await pool.fetchval("SELECT array_agg(turn ORDER BY turn) FROM runs")
    between = datetime(2026, 1, 2, tzinfo=UTC)
    for filtered in (
        {"agent": "a"}, {"statuses": ["failed"]}, {"session_id": "s"}, {"parent_run_id": "p"}, {"queue": "q"},
        {"workflow": "w"}, {"version": "2"}, {"created": (None, between)}, {"before": last},
    ):  # fmt: skip
        found, _ = await runs.list_runs(pool, **filtered)
        assert [run["run_id"] for run in found] == ["mine"], filtered
    assert [run["run_id"] for run in (await runs.list_runs(pool, created=(between, None)))[0]] == ["other"]
    assert (await runs.list_runs(pool, before=first))[0] == []


async def test_the_views_say_what_people_want_to_know(family, pool):
    waiting = await pool.fetchrow("SELECT * FROM run_overview WHERE status = 'waiting'")
    assert waiting["waits_for"].startswith("until 20")
    assert waiting["waits_for"].endswith("signal go")
    steps = await pool.fetch(
        "SELECT name, status, attempt FROM run_steps WHERE run_id = 'child' AND name = 'tried' ORDER BY seq"
    )
    assert [tuple(step) for step in steps] == [("tried", "retrying", 1), ("tried", "completed", 2)]
    leaf = await pool.fetchrow("SELECT * FROM run_steps WHERE run_id = 'grandchild'")
    assert (leaf["input_tokens"], leaf["output_tokens"], leaf["agent"]) == (12, 3, "family")
    assert await pool.fetchval("SELECT count(*) FROM run_signals WHERE NOT taken") == 1


@pytest.mark.parametrize("query", SQL, ids=range(len(SQL)))
async def test_the_queries_that_documents_show_run(pool, query):
    await pool.fetch(query)
