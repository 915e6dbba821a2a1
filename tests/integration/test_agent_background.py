from __future__ import annotations

import asyncio

import orjson
import pytest

from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.engine import Context
from perdure.testing.models import Call, ScriptedModel
from tests.integration.agent_support import configure, load, output, results, spoken, transcript
from tests.platform import in_process
from tests.support import eventually


async def child_of(pool, agent, name):
    """The run of a background tool, once it is there."""
    return await pool.fetchval(
        "SELECT run_id FROM runs WHERE agent_name = $1 AND workflow = $2 ORDER BY turn LIMIT 1", agent, f"tool:{name}"
    )


async def finished(pool, *, agent, workflow):
    return await pool.fetchval(
        "SELECT count(*) FROM runs WHERE agent_name = $1 AND workflow = $2 AND finished_at IS NOT NULL", agent, workflow
    )


def scripted(*lines, tools, **more):
    return DurableAgent("bob", model=ScriptedModel(*lines), tools=tools, **more)


def seen(request):
    return " | ".join(one["content"] for one in request.messages if one["role"] == "tool")


@pytest.fixture
def gate():
    return asyncio.Event()


@pytest.fixture
def work(gate):
    @tool(background=True)
    async def work(what: str, ctx: Context) -> str:
        """Work."""

        async def slow(what: str) -> str:
            await gate.wait()
            return f"{what} done"

        return await ctx.step("slow", slow, what)

    return work


async def test_the_model_goes_on_at_once_and_the_next_turn_has_the_result(settings, nc, pool, gate, work):
    agent = scripted(Call("work", {"what": "it"}), "scheduled, then", "not yet", seen, tools=[work])
    async with in_process(settings, nc, agent) as platform:
        assert await output(platform, "bob", "go", session_id="s") == "scheduled, then"
        assert await output(platform, "bob", "is it done?", session_id="s") == "not yet"
        system = agent.model.given.requests[-1].messages[0]["content"]
        assert "Background work: work (call call_" in system
        gate.set()
        await eventually(lambda: finished(pool, agent="bob", workflow="tool:work"))
        said = await output(platform, "bob", "and now?", session_id="s")
    scheduled, ended = (orjson.loads(one) for one in said.split(" | "))
    assert scheduled["status"] == "scheduled"
    assert ended == {"call_id": scheduled["call_id"], "status": "completed", "result": "it done"}
    messages = await transcript(pool, "s")
    assert [one["role"] for one in messages] == [
        "user", "assistant", "tool", "assistant", "user", "assistant", "assistant", "tool", "user", "assistant",
    ]  # fmt: skip
    assert len(results(messages)) == 2, "a result comes in once"


async def test_a_tool_that_wakes_begins_a_turn_as_soon_as_it_is_done(settings, nc, pool, gate):
    @tool(background=True, wake=True)
    async def work(what: str) -> str:
        """Work."""
        await gate.wait()
        return f"{what} done"

    agent = scripted(Call("work", {"what": "it"}), "scheduled", lambda request: f"told: {seen(request)}", tools=[work])
    async with in_process(settings, nc, agent) as platform:
        reply = await platform.ask("bob", "go")  # without a session the conversation is that of the run
        gate.set()

        async def told():
            return len(spoken(await transcript(pool, reply["run_id"]))) == 3

        await eventually(told)
        said = spoken(await transcript(pool, reply["run_id"]))[-1]
        assert said[0] == "assistant"
        assert "it done" in said[1]


async def test_a_wake_up_that_comes_after_its_result_was_told_says_nothing(settings, nc, pool, gate):
    @tool(background=True, wake=True)
    async def work() -> str:
        """Work."""
        await gate.wait()
        return "done"

    asked, answer = asyncio.Event(), asyncio.Event()

    class Model:
        script = ScriptedModel(Call("work"), "scheduled", "slow answer", seen, "never")

        async def complete(self, request, *, on_delta=None):
            if request.messages[-1]["content"] == "wait":
                asked.set()
                await answer.wait()
            return await self.script.complete(request)

    async with in_process(settings, nc, DurableAgent("bob", model=Model(), tools=[work])) as platform:
        await output(platform, "bob", "go", session_id="s")
        await platform.start_run("bob", "wait", session_id="s")
        await asked.wait()
        third = await platform.start_run("bob", "what of it?", session_id="s")  # in line before the wake-up
        gate.set()
        await eventually(lambda: finished(pool, agent="bob", workflow="tool:work"))
        answer.set()
        await eventually(lambda: finished_run(platform, third))
        wake = await pool.fetchval("SELECT run_id FROM runs WHERE run_id LIKE '%-wake'")
        await eventually(lambda: finished_run(platform, wake))
        assert (await platform.run(wake)).get("output") is None
    messages = await transcript(pool, "s")
    assert len(results(messages)) == 2
    assert spoken(messages)[-1][0] == "assistant"
    assert len(spoken(messages)) == 6


async def finished_run(platform, run_id):
    return (await platform.run(run_id))["status"] == "completed"


async def test_a_background_tool_that_fails_or_is_cancelled_is_told_to_the_model(settings, nc, pool, gate, work):
    @tool(background=True)
    async def broken() -> str:
        """Break."""
        raise SystemExit(7)

    agent = scripted([Call("broken"), Call("work", {"what": "x"}), Call("work")], "ok", seen, tools=[work, broken])
    async with in_process(settings, nc, agent) as platform:
        await output(platform, "bob", "go", session_id="s")
        child = await eventually(lambda: child_of(pool, "bob", "work"))
        await platform.request("run.cancel", {"run_id": child})
        await eventually(lambda: finished(pool, agent="bob", workflow="tool:work"))
        await eventually(lambda: finished(pool, agent="bob", workflow="tool:broken"))
        said = [orjson.loads(one) for one in (await output(platform, "bob", "and?", session_id="s")).split(" | ")]
    assert "what: Field required" in said[2]["error"]["message"], "bad arguments start nothing"
    assert [one["status"] for one in said[3:]] == ["failed", "failed"]
    texts = " ".join(one["error"]["message"] for one in said[3:])
    assert "SystemExit" in texts
    assert "cancelled" in texts


async def test_three_lines_at_once_and_each_result_by_its_call(settings, nc, pool, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL"):
        monkeypatch.delenv(name, raising=False)
    await configure(pool, "activation", step_seconds="0.01")
    async with in_process(settings, nc, load("activation")) as platform:
        said = await output(
            platform, "activation", "activate line Anna, activate line Bob, activate line Eve", session_id="s"
        )
        assert said.count("scheduled") == 3

        async def all_done():
            return await finished(pool, agent="activation", workflow="tool:activate_line") == 3

        await eventually(all_done)
        answer = await output(platform, "activation", "is it done?", session_id="s")
    for customer in ("Anna", "Bob", "Eve"):
        assert f"the line of {customer} is active" in answer
    told = [orjson.loads(one) for one in results(await transcript(pool, "s"))]
    assert {one["call_id"] for one in told[:3]} == {one["call_id"] for one in told[3:]}
    assert len({one["call_id"] for one in told}) == 3


async def test_the_progress_and_the_end_of_the_work_are_events(settings, nc, pool, gate):
    @tool(background=True)
    async def work(what: str, ctx: Context) -> str:
        """Work."""
        await ctx.progress(0.4, f"digging for {what}")
        await ctx.step("wait", gate.wait)
        return f"{what} done"

    agent = scripted(Call("work", {"what": "it"}), "scheduled", tools=[work])
    heard = []

    async def keep(message):
        heard.append(orjson.loads(message.data))

    async with in_process(settings, nc, agent) as platform:
        await nc.subscribe("run.events.>", cb=keep)
        await nc.flush()
        reply = await platform.ask("bob", "go")
        gate.set()
        await eventually(lambda: [one for one in heard if one["type"] == "tool.completed"])
    done = next(one for one in heard if one["type"] == "tool.completed")
    assert done["data"]["status"] == "completed"
    assert done["data"]["parent"] == reply["run_id"]
    assert done["data"]["result"] == "it done"
    [mark] = [one for one in heard if one["type"] == "tool.progress"]
    assert (mark["run_id"], mark["data"]["fraction"], mark["data"]["text"]) == (done["run_id"], 0.4, "digging for it")
