from __future__ import annotations

import asyncio

import pytest

from perdure.agent.durable import DurableAgent
from perdure.errors import InvalidRequest, PermanentError, RunFailed
from perdure.testing.models import ScriptedModel
from tests.integration.agent_support import configure, load, output, spoken, transcript
from tests.platform import in_process
from tests.support import eventually


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL"):
        monkeypatch.delenv(name, raising=False)


async def test_the_assistant_answers_in_its_role_without_any_key(settings, nc):
    async with in_process(settings, nc, load("assistant")) as platform:
        said = await output(platform, "assistant", "hello")
        assert "no language model" in said
        assert "As a helpful assistant" in said
        assert "add_numbers says 6.5" in await output(platform, "assistant", {"task": "add numbers 1 2 3.5"})
        assert "As a helpful assistant" in await output(platform, "assistant", {"prompt": "hello"})


async def test_a_role_changed_by_sql_shows_in_the_next_answer_of_the_same_conversation(settings, nc, pool):
    async with in_process(settings, nc, load("assistant")) as platform:
        assert "As a helpful" in await output(platform, "assistant", "hello", session_id="s")
        await configure(pool, "assistant", agent_role="a pirate")
        turn = 0

        async def answers_as_a_pirate():
            nonlocal turn
            turn += 1
            return "As a pirate" in await output(platform, "assistant", f"hello {turn}", session_id="s")

        await eventually(answers_as_a_pirate)


@pytest.mark.parametrize("task", [7, None, [], {}, {"task": 7}, {"other": "x"}, "", "  ", {"task": ""}])
async def test_a_task_of_another_form_fails_with_what_is_expected(settings, nc, task):
    async with in_process(settings, nc, DurableAgent("bob", model=ScriptedModel("hi"))) as platform:
        with pytest.raises((RunFailed, InvalidRequest), match=r"text|empty|task"):
            await platform.ask("bob", task)


async def test_a_session_is_one_conversation_and_runs_without_one_have_their_own(settings, nc, pool):
    model = ScriptedModel(*(lambda request: f"I see {len(request.messages)} messages" for _ in range(9)))
    async with in_process(settings, nc, DurableAgent("bob", model=model)) as platform:
        assert await output(platform, "bob", "one", session_id="s") == "I see 2 messages"
        assert await output(platform, "bob", "two", session_id="s") == "I see 4 messages"
        assert await output(platform, "bob", "other", session_id="t") == "I see 2 messages"
        alone = await platform.ask("bob", "alone")
        assert alone["output"] == "I see 2 messages"
        assert await output(platform, "bob", "more", session_id=alone["run_id"]) == "I see 4 messages"
    assert spoken(await transcript(pool, "s")) == [
        ("user", "one"),
        ("assistant", "I see 2 messages"),
        ("user", "two"),
        ("assistant", "I see 4 messages"),
    ]


async def test_turns_of_a_session_come_one_at_a_time_in_order_over_two_replicas(settings, nc, pool):
    def agent():
        return DurableAgent(
            "bob", model=ScriptedModel(*(lambda request: request.messages[-1]["content"].upper(),) * 40)
        )

    async with in_process(settings, nc, agent(), agent()) as platform:
        for number in range(10):
            for session in ("s", "t", "u"):
                await platform.start_run("bob", f"{session}{number}", session_id=session)

        async def all_answered():
            return [len(await transcript(pool, session)) for session in ("s", "t", "u")] == [20, 20, 20]

        await eventually(all_answered, timeout=20)
    for session in ("s", "t", "u"):
        said = [f"{session}{number}" for number in range(10)]
        both = [pair for one in said for pair in (("user", one), ("assistant", one.upper()))]
        assert spoken(await transcript(pool, session)) == both


async def test_the_model_is_shown_at_most_the_newest_messages(settings, nc, pool):
    model = ScriptedModel(*(lambda request: f"{len(request.messages)}" for _ in range(20)))
    agent = DurableAgent("bob", model=model, history_max_messages=4)
    model.lines = (lambda request: f"{len(request.messages)}",) * 20
    async with in_process(settings, nc, agent) as platform:
        counts = [int(await output(platform, "bob", f"turn {n}", session_id="s")) for n in range(6)]
        assert counts == [2, 4, 5, 5, 5, 5]
        await configure(pool, "bob", history_max_messages=2)

        async def fewer():
            return await output(platform, "bob", "again", session_id="s") == "3"

        await eventually(fewer)


async def test_what_one_process_cached_another_process_reads_from_the_rows(settings, nc):
    def agent():
        return DurableAgent("bob", model=ScriptedModel(*(lambda request: f"{len(request.messages)}",) * 20))

    async with in_process(settings, nc, agent()) as platform:
        for number in range(3):
            await output(platform, "bob", f"turn {number}", session_id="s")
    async with in_process(settings, nc, agent()) as platform:
        assert await output(platform, "bob", "more", session_id="s") == "8"
        assert await output(platform, "bob", "more", session_id="s") == "10"


async def test_two_runs_can_never_write_one_session_at_once(settings, nc, pool):
    began, go_on = asyncio.Event(), asyncio.Event()

    class Slow:
        async def complete(self, request, *, on_delta=None):
            began.set()
            if request.messages[-1]["content"] == "first":
                await go_on.wait()
            return await ScriptedModel(*(f"to {one['content']}" for one in request.messages[1::2])).complete(request)

    agent = DurableAgent("bob", model=Slow())
    async with in_process(settings, nc, agent) as platform:
        first = await platform.start_run("bob", "first")
        await began.wait()
        # the first run has no session for the engine to keep in order: its conversation is that of its own id
        second = await platform.start_run("bob", "second", session_id=first)

        async def waits():
            return (await platform.run(second))["status"] in {"waiting", "running"}

        await eventually(waits)
        async with pool.acquire() as connection:
            with pytest.raises(PermanentError, match="nothing was appended"):
                await agent.sessions.append(connection, first, second, ["{}"], close=True)
        go_on.set()
        await eventually(lambda: completed(platform, second))
    assert spoken(await transcript(pool, first)) == [
        ("user", "first"),
        ("assistant", "to first"),
        ("user", "second"),
        ("assistant", "to second"),
    ]


async def completed(platform, run_id):
    run = await platform.run(run_id)
    assert run["status"] != "failed", run
    return run["status"] == "completed"
