from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.client import Client
from perdure.engine import Context, workflow
from perdure.errors import InvalidRequest
from tests.engine_support import until
from tests.platform import in_process
from tests.queue_support import configure
from tests.support import eventually


class Parent(BaseAgent):
    name = "parent"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        child = await ctx.start("parent", 1, workflow="child", queue="minor", priority=7, fair_key="acme")
        late = await ctx.start("parent", 2, workflow="child", delay=timedelta(hours=1))
        called = await ctx.call("parent", 3, workflow="child", priority=-1)
        return [child.run_id, late.run_id, called]

    @workflow
    async def child(self, ctx: Context, task: Any) -> Any:
        return task

    @workflow
    async def wrong(self, ctx: Context, task: dict) -> Any:
        await ctx.start("parent", 1, workflow="child", **task)


async def test_a_workflow_says_it_of_its_children(settings, nc, pool):
    async with in_process(settings, nc, Parent) as platform:
        await configure(platform, "minor", concurrency=0)
        child, late, called = (await platform.ask("parent", 0))["output"]
        assert called == 3
        run = await platform.run(child)
        assert (run["status"], run["queue"], run["priority"], run["fair_key"]) == ("pending", "minor", 7, "acme")
        assert (await platform.run(late))["status"] == "waiting"
        assert (await platform.request("run.list", {"queue": "minor"}))["runs"][0]["run_id"] == child
        await configure(platform, "minor", concurrency=None)
        await until(platform, child, "completed")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"priority": "high"}, "priority"),
        ({"priority": 5000}, "priority"),
        ({"queue": 5}, "queue"),
        ({"queue": "No Queue"}, "queue"),
        ({"fair_key": ""}, "fair_key"),
        ({"delay": -1}, "delay"),
        ({"delay": "soon"}, "delay"),
        ({"start_at": "2030-01-01"}, "start_at"),
        ({"dedup_key": 5}, "dedup_key"),
        ({"dedup_window": 5}, "dedup_window needs a dedup_key"),
        ({"dedup_key": "k", "dedup_window": 0}, "dedup_window"),
        ({"dedup_key": "k", "debounce_key": "k", "debounce": 1}, "dedup_key or debounce_key"),
        ({"debounce_key": "k"}, "debounce_key needs debounce"),
        ({"debounce_key": "k", "debounce": 5, "debounce_max": 1}, "debounce_max"),
        ({"debounce_key": "k", "debounce": 5, "delay": 1}, "delay"),
        ({"dedup": "k"}, "dedup"),
    ],
)
async def test_what_makes_no_sense_fails_in_the_workflow_by_name(settings, nc, said, why):
    async with in_process(settings, nc, Parent) as platform:
        run_id = await platform.start_run("parent", said, workflow="wrong")
        run = await until(platform, run_id, "failed")
        assert why in run["error"]["message"]


BAD = [
    ("priority", {"priority": "1"}),
    ("priority", {"priority": 1.5}),
    ("priority", {"priority": True}),
    ("priority", {"priority": 1001}),
    ("queue", {"queue": ""}),
    ("queue", {"queue": "a b"}),
    ("queue", {"queue": 7}),
    ("fair_key", {"fair_key": 7}),
    ("fair_key", {"fair_key": ""}),
    ("fair_key", {"fair_key": "x" * 257}),
    ("fair_key", {"fair_key": "a\0b"}),
    ("delay", {"delay": -1}),
    ("delay", {"delay": "5"}),
    ("delay", {"delay": 1e12}),
    ("start_at", {"start_at": "2030-01-01T00:00:00"}),
    ("start_at", {"start_at": "tomorrow"}),
    ("start_at", {"start_at": "2030-01-01T00:00:00Z", "delay": 5}),
    ("dedup_key", {"dedup_key": 5}),
    ("dedup_window", {"dedup_key": "k", "dedup_window": 0}),
    ("dedup_window", {"dedup_window": 5}),
    ("debounce", {"debounce": 5}),
    ("debounce", {"debounce_key": "k", "debounce": -1}),
    ("debounce_key", {"debounce_key": "k"}),
    ("debounce_key", {"debounce_key": "k", "debounce": 1, "dedup_key": "k"}),
    ("debounce_max", {"debounce_key": "k", "debounce": 5, "debounce_max": 1}),
    ("debounce_max", {"debounce_max": 1}),
    ("delay", {"debounce_key": "k", "debounce": 5, "delay": 1}),
]


async def test_a_bad_option_is_refused_by_name_on_every_door(settings, nc, pool):
    async with in_process(settings, nc) as platform:
        for field, said in BAD:
            for request in (platform.start_run, platform.ask):
                with pytest.raises(InvalidRequest, match=f"field '{field}'"):
                    await request("parent", 1, **said)
        with pytest.raises(InvalidRequest, match="queue"):
            await platform.request("queue.list", {"queue": "A B"})
        with pytest.raises(InvalidRequest, match="queue"):
            await platform.request("run.list", {"queue": ""})
    assert await pool.fetchval("SELECT count(*) FROM runs") == 0


async def test_a_client_and_a_task_message_say_it_too(settings, nc, pool):
    async with in_process(settings, nc) as platform, Client(settings) as client:
        await configure(platform, "bulk", concurrency=0)
        run = await client.start("parent", 1, workflow="child", queue="bulk", priority=3, dedup_key="k")
        again = await client.start("parent", 2, workflow="child", dedup_key="k")
        assert again.run_id == run.run_id
        js = nc.jetstream()
        await js.publish("task.parent", b'{"task": 1, "workflow": "child", "queue": "bulk", "fair_key": "t"}')
        await eventually(lambda: pool.fetchval("SELECT count(*) = 2 FROM runs WHERE queue_name = 'bulk'"))
        [queue] = await client.queues()
        assert (queue["queue"], queue["pending"], queue["waits_for"]) == ("bulk", 2, "concurrency")
        await platform.agent(Parent)
        page = await client.list(queue="bulk", status="pending")
        assert {each["reason"]["code"] for each in page.runs} == {"waiting_for_place"}
        await configure(platform, "bulk", concurrency=1)
        assert await run.result(timeout=10) == 1
