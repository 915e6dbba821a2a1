"""`AgentRunner` inside a program, on a platform that runs already."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import datetime

import orjson
import pytest
from pydantic import BaseModel, Field

from perdure import AgentRunner, BaseAgent, DurableAgent, Retry, workflow
from perdure.agent.triggers import on
from perdure.errors import Conflict, NotFound
from perdure.testing.models import Call, ScriptedModel
from tests.platform import in_process
from tests.support import eventually


@pytest.fixture
async def runner(settings, nc):
    async with in_process(settings, nc):
        made = AgentRunner(settings)
        yield made
        await asyncio.to_thread(made.shutdown)


class Worker(BaseAgent):
    name = "worker"
    mended = False

    @workflow
    async def run(self, ctx, task):
        return (
            await ctx.wait_signal("go")
            if task == "wait"
            else await ctx.step("do", self.do, task, retry=Retry(max_attempts=1))
        )

    @on("worker.ping")
    async def ping(self, ctx, task: dict) -> str:
        return "pong"

    async def do(self, task: object) -> str:
        if task == "fail" and not Worker.mended:
            raise ValueError("as told")
        return f"did {task}"


class Lunch(BaseModel):
    place: str = Field(alias="where")
    at: datetime


async def until(runner, run_id, status):
    async def there():
        return [one for one in (await runner.list(status=status)).runs if one["run_id"] == run_id]

    return (await eventually(there))[0]


async def test_a_stream_tells_a_run_from_its_first_event_to_its_last(runner):
    agent = DurableAgent("bob", model=ScriptedModel(Call("nothing"), "one two", "three"))
    events = [event async for event in runner.run_stream(agent, "hello", session_id="s")]
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-1]) == ("run.started", "run.completed")
    assert "".join(one["data"]["text"] for one in events if one["type"] == "llm.delta") == "one two"
    assert events[-1]["data"]["output"] == "one two"
    again = [event async for event in runner.run_stream(agent, "and?", session_id="s")]
    assert again[-1]["data"]["output"] == "three", "it is the same conversation"


async def test_an_answer_of_a_declared_type_is_an_object_of_it(runner):
    said = '{"where": "the harbour", "at": "2026-11-21T12:00:00Z"}'
    agent = DurableAgent("bob", model=ScriptedModel(said, said), output_type=Lunch)
    lunch = await runner.run(agent, "where and when?")
    assert isinstance(lunch, Lunch)
    assert (lunch.place, lunch.at.hour) == ("the harbour", 12)
    assert isinstance(await asyncio.to_thread(runner.run_sync, agent, "again?"), Lunch)


async def test_a_run_that_fails_is_told_by_its_last_event_and_can_be_resumed(runner, monkeypatch):
    events = [event async for event in runner.run_stream(Worker, "fail")]
    assert events[-1]["type"] == "run.failed"
    assert "as told" in events[-1]["data"]["error"]["message"]
    run_id = events[-1]["run_id"]
    monkeypatch.setattr(Worker, "mended", True)
    await runner.resume(run_id)
    await until(runner, run_id, "completed")
    with pytest.raises(NotFound):
        await runner.resume("nobody")


async def test_a_stream_that_is_left_leaves_the_run_going_until_it_is_paused_or_cancelled(runner):
    async with aclosing(runner.run_stream(Worker, "wait")) as events:
        async for event in events:
            run_id = event["run_id"]
            break
    await until(runner, run_id, "waiting")
    await runner.pause(run_id)
    await until(runner, run_id, "paused")
    await runner.resume(run_id)
    await until(runner, run_id, "waiting")
    await runner.cancel(run_id, "enough")
    assert (await until(runner, run_id, "cancelled"))["agent"] == "worker"
    with pytest.raises(Conflict):
        await runner.resume(run_id)


async def test_a_subscribed_agent_takes_runs_tasks_and_triggers_until_the_shutdown(runner, nc, pool):
    await asyncio.to_thread(runner.subscribe, Worker)
    await nc.jetstream().publish("task.worker", orjson.dumps({"task": "a"}), headers={"Nats-Msg-Id": "1"})
    await nc.publish("worker.ping", b"{}")

    async def outputs():
        return {row["output"] for row in await pool.fetch("SELECT output FROM runs WHERE status = 'completed'")}

    async def both():
        return await outputs() == {'"did a"', '"pong"'}

    await eventually(both)
    await asyncio.to_thread(runner.shutdown, Worker)
    reply = await nc.request("run.start.worker", orjson.dumps({"task": "b", "run_id": "late"}))
    assert orjson.loads(reply.data)["status"] == "accepted"
    assert (await until(runner, "late", "pending"))["run_id"] == "late", "nobody takes it any more"
    await asyncio.to_thread(runner.subscribe, Worker)
    await until(runner, "late", "completed")


async def test_runs_are_listed_by_agent_status_and_session_page_by_page(runner):
    bob = DurableAgent("bob", model=ScriptedModel("one", "two", "three"))
    for session in ("s", "s", "t"):
        await runner.run(bob, "hello", session_id=session)
    await runner.run(Worker, "x")
    page = await runner.list(bob, status="completed", limit=2)
    assert len(page.runs) == 2
    rest = await runner.list("bob", limit=2, cursor=page.next_cursor)
    assert len(rest.runs) == 1
    assert rest.next_cursor is None
    assert len((await runner.list(session_id="s")).runs) == 2
    assert len((await runner.list()).runs) == 4
