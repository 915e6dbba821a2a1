from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from perdure import Client, RunHandle
from perdure.agent.base import BaseAgent
from perdure.client import client as client_module
from perdure.client import waiting
from perdure.engine import Context, Retry, workflow
from perdure.errors import Conflict, InvalidRequest, NotFound, RunFailed, SetupError, Unavailable
from perdure.settings import Settings
from tests.platform import in_process
from tests.support import eventually


class Worker(BaseAgent):
    name = "worker"

    @workflow
    async def run(self, ctx: Context, task: dict) -> dict:
        doubled = await ctx.step("double", self.double, task["n"])
        if task.get("wait"):
            doubled += await ctx.wait_signal("go")
        return {"doubled": doubled}

    @workflow
    async def parent(self, ctx: Context, task: dict) -> dict:
        return await ctx.call("worker", {"n": task["n"]}, run_id=f"{ctx.run_id}-child")

    @workflow
    async def many(self, ctx: Context, task: int) -> int:
        for number in range(task):
            ctx.emit({"number": number})
        await ctx.step("last", self.double, 1)
        return task

    async def double(self, n: int) -> int:
        if n < 0:
            raise ValueError(f"{n} is below nothing")
        return n * 2


async def test_a_started_run_gives_its_result(settings, nc):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        run = await client.start("worker", {"n": 2})
        assert isinstance(run, RunHandle)
        assert await run.result() == {"doubled": 4}
        assert await run.result() == {"doubled": 4}
        assert [step["name"] for step in (await run.details())["steps"]] == ["double"]
        assert "steps" not in await run.details(steps=False)


async def test_a_client_connects_on_first_use_and_closes_more_than_once(settings, nc):
    async with in_process(settings, nc, Worker):
        client = Client(settings)
        assert await client.ask("Worker", {"n": 3}) == {"doubled": 6}
        await client.close()
        await client.close()
        with pytest.raises(Unavailable, match="was closed"):
            await client.ask("worker", {"n": 3})


async def test_a_failed_run_raises_what_it_failed_of(settings, nc):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        with pytest.raises(RunFailed, match="below nothing") as failed:
            await client.ask("worker", {"n": -1}, run_id="bad")
        # three attempts and a second between: the default retry
        assert (failed.value.run_id, failed.value.status) == ("bad", "failed")
        assert failed.value.error["type"] == "StepFailed"


async def test_the_same_run_id_is_the_same_run_and_with_another_task_a_conflict(settings, nc):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        first = await client.start("worker", {"n": 2}, run_id="one")
        again = await client.start("worker", {"n": 2}, run_id="one")
        assert first.run_id == again.run_id == "one"
        with pytest.raises(Conflict, match="another task"):
            await client.start("worker", {"n": 5}, run_id="one")


async def test_a_result_comes_although_the_word_of_the_end_is_lost(settings, nc, monkeypatch):
    monkeypatch.setattr(waiting, "subjects", SimpleNamespace(run_ended=lambda _agent, run: f"nowhere.{run}"))
    async with in_process(settings, nc, Worker), Client(settings) as client:
        run = await client.start("worker", {"n": 1, "wait": True})
        waits = asyncio.create_task(run.result(timeout=20))
        await eventually(lambda: is_waiting(run))
        await run.signal("go", 5)
        assert await waits == {"doubled": 7}


async def test_the_word_of_the_end_wakes_who_waits(settings, nc, monkeypatch):
    monkeypatch.setattr(waiting, "LOOK_EVERY", 3600.0)
    async with in_process(settings, nc, Worker), Client(settings) as client:
        run = await client.start("worker", {"n": 1, "wait": True})
        waits = asyncio.create_task(run.result(timeout=20))
        await eventually(lambda: is_waiting(run))
        await run.signal("go", 5)
        assert await waits == {"doubled": 7}


async def test_a_result_that_takes_too_long_is_a_timeout_and_the_run_goes_on(settings, nc):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        run = await client.start("worker", {"n": 1, "wait": True})
        with pytest.raises(TimeoutError, match="it goes on"):
            await run.result(timeout=0.05)
        await run.signal("go", 1)
        assert await run.result(timeout=20) == {"doubled": 3}


async def test_a_signal_with_an_id_counts_once(settings, nc, pool):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        run = await client.start("worker", {"n": 1, "wait": True})
        await eventually(lambda: is_waiting(run))
        await run.signal("other", 1, id="a")
        await run.signal("other", 1, id="a")
        assert await pool.fetchval("SELECT count(*) FROM signals WHERE run_id = $1", run.run_id) == 1
        await run.cancel()


async def test_a_cancelled_run_says_why_and_takes_no_signal(settings, nc):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        run = await client.start("worker", {"n": 1, "wait": True})
        await run.cancel("changed my mind")
        with pytest.raises(RunFailed, match="changed my mind") as failed:
            await run.result(timeout=20)
        assert failed.value.status == "cancelled"
        with pytest.raises(Conflict):
            await run.signal("go")


async def test_closing_the_client_ends_waits_and_streams_with_an_error(settings, nc):
    async with in_process(settings, nc, Worker):
        client = Client(settings)
        run = await client.start("worker", {"n": 1, "wait": True})
        waits = asyncio.create_task(run.result())
        events = run.events()
        assert (await anext(events))["type"] == "run.started"
        rest = asyncio.create_task(drain(events))
        await eventually(lambda: is_waiting(run))
        await client.close()
        for task in (waits, rest):
            with pytest.raises(Unavailable, match="closed"):
                await task


async def test_runs_are_listed_with_their_children_and_by_pages(settings, nc):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        await client.ask("worker", {"n": 4}, workflow="parent", run_id="mother")
        await client.ask("worker", {"n": 1}, session_id="talk")
        children = await client.list(parent_run_id="mother")
        assert [run["run_id"] for run in children.runs] == ["mother-child"]
        assert [run["session_id"] for run in (await client.list(session_id="talk")).runs] == ["talk"]
        page = await client.list(agent="worker", status="completed", limit=2)
        assert len(page.runs) == 2
        rest = await client.list(agent="worker", status="completed", limit=2, cursor=page.next_cursor)
        assert [run["run_id"] for run in rest.runs] == ["mother"]
        assert rest.next_cursor is None


async def test_a_run_is_forked_and_a_failed_one_resumed(settings, nc):
    class Flaky(BaseAgent):
        name = "flaky"
        broken = True

        @workflow
        async def run(self, ctx: Context, task: int) -> int:
            one = await ctx.step("one", self.one, task)
            return await ctx.step("two", self.two, one, retry=Retry(max_attempts=1))

        async def one(self, n: int) -> int:
            return n + 1

        async def two(self, n: int) -> int:
            if type(self).broken:
                raise ValueError("not yet")
            return n * 10

    async with in_process(settings, nc, Flaky), Client(settings) as client:
        run = await client.start("flaky", 1)
        with pytest.raises(RunFailed, match="not yet"):
            await run.result(timeout=20)
        Flaky.broken = False
        forked = await client.fork(run.run_id, "two")
        assert forked.run_id != run.run_id
        assert await forked.result(timeout=20) == 20
        assert (await client.resume(run.run_id)).run_id == run.run_id
        with pytest.raises(Conflict, match="only failed"):
            await client.resume(forked.run_id)
        with pytest.raises(NotFound, match="no step 'three'"):
            await client.fork(run.run_id, "three")


async def test_the_details_of_a_run_have_all_its_steps(settings, nc):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        run = await client.start("worker", 1200, workflow="many")
        assert await run.result(timeout=30) == 1200
        assert [step["seq"] for step in (await run.details())["steps"]] == list(range(1, 1202))


async def test_a_start_whose_answer_is_lost_is_made_once(settings, nc, pool, monkeypatch):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        request = client._connection.request
        lost = iter([True, False])

        async def lossy(subject, payload, **more):
            reply = await request(subject, payload, **more)
            if subject.startswith("run.start") and next(lost):
                raise Unavailable("no answer")
            return reply

        monkeypatch.setattr(client._connection, "request", lossy)
        await client.start("worker", {"n": 1})
        assert await pool.fetchval("SELECT count(*) FROM runs") == 1


async def test_bad_names_ids_and_tasks_are_refused_by_name(settings, nc):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        with pytest.raises(InvalidRequest, match="agent name 'a!'"):
            await client.start("a!", 1)
        with pytest.raises(InvalidRequest, match="run_id 'no spaces'"):
            await client.start("worker", 1, run_id="no spaces")
        with pytest.raises(InvalidRequest, match=r"session_id 'a\.b'"):
            await client.start("worker", 1, session_id="a.b")
        with pytest.raises(InvalidRequest, match="field 'task' cannot travel as JSON"):
            await client.start("worker", {"when": object()})
        with pytest.raises(InvalidRequest, match="status"):
            await client.list(status="asleep")
        with pytest.raises(InvalidRequest, match=r"run_id '\*'"):
            await client.get("*")
        with pytest.raises(NotFound, match="no run 'nobody'"):
            await client.get("nobody")


async def test_an_unknown_run_ends_waits_with_not_found(settings, nc):
    async with in_process(settings, nc, Worker), Client(settings) as client:
        stranger = RunHandle(client._connection, "nobody", "worker")
        with pytest.raises(NotFound):
            await stranger.result(timeout=20)
        with pytest.raises(NotFound):
            await drain(stranger.events())


async def test_no_nats_and_no_scheduler_are_told_apart(settings, nc):
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:9 cannot be used.*perdure up"):
        await Client(Settings(nats_url="nats://127.0.0.1:9")).start("worker", 1)
    async with Client(settings) as client:
        with pytest.raises(Unavailable, match=r"nobody answers run\.start\.worker"):
            await client.start("worker", 1)


def test_the_package_exports_what_it_says():
    assert client_module.Client is Client


async def is_waiting(run: RunHandle) -> bool:
    return (await run.details(steps=False))["status"] == "waiting"


async def drain(events) -> list:
    return [event async for event in events]
