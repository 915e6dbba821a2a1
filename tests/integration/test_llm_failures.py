from __future__ import annotations

import asyncio

import orjson
import pytest

from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.errors import RunFailed
from perdure.testing import faults
from perdure.testing.faults import FaultServer
from tests.integration.agent_support import configure, output, results, spoken, transcript
from tests.platform import in_process
from tests.support import eventually

KEY = "sk-this-must-never-be-seen"


@pytest.fixture
async def server(monkeypatch):
    async with FaultServer() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield running


def bob(**more):
    return DurableAgent("bob", role="a clerk", **more)


@pytest.mark.parametrize("number", [400, 401, 403, 404])
async def test_a_permanent_failure_ends_the_run_with_what_to_do(settings, nc, pool, server, number):
    server.always(faults.status(number, f"bad {KEY}"))
    async with in_process(settings, nc, bob()) as platform:
        with pytest.raises(RunFailed, match=f"answered {number}.*llm_") as told:
            await platform.ask("bob", "hello", session_id="s")
        assert KEY not in str(told.value)
        assert len(server.asked) == 1, "a permanent failure is not tried again"
        server.always(None)
        assert "As a clerk" in await output(platform, "bob", "hello again", session_id="s")
    assert [role for role, _ in spoken(await transcript(pool, "s"))] == ["user", "user", "assistant"]
    for table in ("journal", "runs", "session_messages"):
        assert KEY not in str(await pool.fetch(f"SELECT * FROM {table}"))


async def test_passing_failures_are_tried_again_and_only_the_answer_counts(settings, nc, pool, server):
    server.script(
        faults.status(503, headers={"Retry-After": "0"}),
        faults.status(429, headers={"Retry-After": "0"}),
        faults.status(409, headers={"Retry-After": "0"}),
        faults.status(408, headers={"Retry-After": "0"}),
        faults.status(500, headers={"Retry-After": "0"}),
    )
    await configure(pool, "bob", retry_max_attempts=9)
    async with in_process(settings, nc, bob()) as platform:
        assert "As a clerk" in await output(platform, "bob", "hello", session_id="s")
    assert len(server.asked) == 6
    assert len(await transcript(pool, "s")) == 2


@pytest.mark.parametrize(
    "behaviour",
    [faults.cut("half an "), faults.stall("half an "), faults.drop(), faults.raw(b"<html>"), faults.answer("")],
    ids=["cut", "stalled", "dropped", "html", "empty"],
)
async def test_half_a_stream_and_nonsense_are_never_journaled_as_an_answer(settings, nc, pool, server, behaviour):
    server.script(behaviour)
    await configure(pool, "bob", llm_timeout_seconds=0.5)
    heard = []

    async def keep(message):
        heard.append(orjson.loads(message.data))

    async with in_process(settings, nc, bob()) as platform:
        await nc.subscribe("run.events.>", cb=keep)
        await nc.flush()
        said = await output(platform, "bob", "hello")
        await eventually(lambda: [one for one in heard if one["type"] == "run.completed"])
    assert "half an" not in said
    assert "half an" not in str(await pool.fetch("SELECT result FROM journal WHERE outcome = 'ok'"))
    pieces = [one["data"] for one in heard if one["type"] == "llm.delta"]
    last = max((at for at, one in enumerate(pieces) if one.get("reset")), default=-1)
    assert "".join(one["text"] for one in pieces[last + 1 :]) == said, "after a reset the pieces are the whole answer"


async def test_a_tool_that_is_not_there_and_broken_arguments_go_back_to_the_model(settings, nc, pool, server):
    @tool
    def dig(depth: int) -> str:
        """Dig."""
        return f"{depth} m deep"

    server.script(
        faults.answer(calls=[("fly", {}), ("dig", '{"depth": '), ("dig", {"depth": "deep"})]),
        faults.answer(calls=[("dig", {"depth": 2})]),
        faults.answer("done"),
    )
    await configure(pool, "bob", llm_price_input=100_000, llm_price_output=100_000)
    async with in_process(settings, nc, bob(tools=[dig])) as platform:
        reply = await platform.ask("bob", "dig")
        assert reply["output"] == "done"
    told = results(await transcript(pool, reply["run_id"]))
    assert "UnknownTool" in told[0]
    assert "the tools are dig" in told[0]
    assert all("InvalidArguments" in one for one in told[1:3])
    assert told[3] == "2 m deep"
    rows = await pool.fetch("SELECT result, config_revision FROM journal WHERE name = 'model' ORDER BY seq")
    replies = [orjson.loads(row["result"]) for row in rows]
    assert [(one["model"], one["input_tokens"], one["output_tokens"], one["cost"]) for one in replies] == [
        ("faulty", 7, 3, 1.0)
    ] * 3, "each call is journaled with its model, tokens and cost"
    assert all(row["config_revision"] > 0 for row in rows), "and with the revision of the configuration it stood on"


async def test_a_used_up_model_fails_the_run_with_its_last_word(settings, nc, pool, server):
    server.always(faults.status(500, "out of order", headers={"Retry-After": "0"}))
    await configure(pool, "bob", retry_max_attempts=2)
    async with in_process(settings, nc, bob()) as platform:
        with pytest.raises(RunFailed, match=r"after 2 attempt.*out of order"):
            await platform.ask("bob", "hello")
    assert len(server.asked) == 2


async def test_a_wrong_address_is_mended_by_sql_while_the_run_waits_for_its_next_try(settings, nc, pool, server):
    async with FaultServer() as wrong:
        wrong.always(faults.status(503, headers={"Retry-After": "0.2"}))
        await configure(pool, "bob", llm_base_url=wrong.url, retry_max_attempts=50)
        async with in_process(settings, nc, bob()) as platform:
            run = await platform.start_run("bob", "hello")
            await eventually(lambda: wrong.asked)
            await configure(pool, "bob", llm_base_url=server.url)

            async def completed():
                return (await platform.run(run))["status"] == "completed"

            await eventually(completed)


async def test_a_new_key_counts_from_the_next_call_in_the_same_process(settings, nc, pool, server, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "the-other-key")
    async with in_process(settings, nc, bob()) as platform:
        await output(platform, "bob", "one")
        await configure(pool, "bob", llm_api_key="secret://env/OTHER_KEY")

        async def uses_it():
            await output(platform, "bob", "two")
            return server.asked[-1].headers["authorization"] == "Bearer the-other-key"

        await eventually(uses_it)
        await configure(pool, "bob", llm_api_key="secret://env/NOT_THERE")

        async def says_so():
            try:
                await output(platform, "bob", "three")
            except RunFailed as error:
                return "NOT_THERE is not set" in str(error)
            return False

        await eventually(says_so)
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_refusal_and_a_length_stop_are_told_apart_from_an_answer(settings, nc, pool, server):
    server.script(faults.answer(refusal="I will not"), faults.answer("cut o", finish="length"), faults.answer("whole"))
    async with in_process(settings, nc, bob()) as platform:
        said = [await output(platform, "bob", "hello", session_id="s") for _ in range(3)]
    assert said == ["I will not", "cut o", "whole"]
    stops = [one.get("stop") for one in await transcript(pool, "s") if one["role"] == "assistant"]
    assert stops == ["refusal", "length", None]
    assert all("stop" not in message for asked in server.asked for message in asked.json["messages"])


async def test_a_run_cancelled_while_the_model_is_silent_ends_and_the_session_goes_on(settings, nc, pool, server):
    server.script(faults.stall("well, "))
    async with in_process(settings, nc, bob()) as platform:
        run = await platform.start_run("bob", "hello", session_id="s")
        await eventually(lambda: server.asked)
        await platform.request("run.cancel", {"run_id": run})

        async def cancelled():
            return (await platform.run(run))["status"] == "cancelled"

        await eventually(cancelled)
        assert "As a clerk" in await output(platform, "bob", "again", session_id="s")
    assert asyncio.get_running_loop().is_running()
