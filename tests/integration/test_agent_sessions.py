from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from perdure.agent import conversations
from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.engine import Context, Retry, StepContext
from perdure.errors import Conflict, NotFound
from perdure.llm.types import ModelReply
from perdure.testing.models import Call, ScriptedModel
from tests.integration.agent_support import configure, output, spoken, transcript
from tests.platform import in_process
from tests.support import eventually


class Counting:
    """Answers with the number of messages it sees; summarises when it is asked to."""

    def __init__(self):
        self.requests = []
        self.summaries = 0

    async def complete(self, request, *, on_delta=None):
        if request.messages[0]["content"].startswith("Summarise"):
            self.summaries += 1
            return ModelReply(f"summary {self.summaries} of [{request.messages[1]['content']}]", "answer")
        self.requests.append(request)
        return ModelReply(str(len(request.messages)), "answer")


async def test_old_turns_are_told_as_a_summary_once_the_conversation_is_long(settings, nc, pool):
    model = Counting()
    await configure(pool, "bob", session_summarize_after=6)
    async with in_process(settings, nc, DurableAgent("bob", model=model)) as platform:
        counts = [int(await output(platform, "bob", f"turn {n}", session_id="s")) for n in range(12)]
        steps = (await platform.run((await platform.ask("bob", "last", session_id="s"))["run_id"]))["steps"]
    assert max(counts) <= 8
    assert model.summaries >= 2
    system = model.requests[-1].messages[0]["content"]
    assert "Earlier in this conversation" in system
    assert "turn 0" in system, "a summary of a summary still has the beginning"
    assert len(spoken(await transcript(pool, "s"))) == 26, "the rows themselves stay"
    assert [one["name"] for one in steps][:1] == ["open turn"]


async def test_a_model_that_cannot_summarise_leaves_the_conversation_whole(settings, nc, pool):
    class Model(Counting):
        async def complete(self, request, *, on_delta=None):
            if request.messages[0]["content"].startswith("Summarise"):
                raise ValueError("no summary")
            return await super().complete(request)

    await configure(pool, "bob", session_summarize_after=4)
    async with in_process(settings, nc, DurableAgent("bob", model=Model())) as platform:
        counts = [int(await output(platform, "bob", f"turn {n}", session_id="s")) for n in range(4)]
    assert counts == [2, 4, 6, 8]


async def test_a_reset_forgets_the_messages_in_every_process(settings, nc, pool):
    async with in_process(settings, nc, DurableAgent("bob", model=Counting())) as platform:
        for number in range(3):
            await output(platform, "bob", f"turn {number}", session_id="s")
        shown = await conversations.history(pool, "bob", "s")
        assert [(one["seq"], one["role"]) for one in shown] == list(enumerate(["user", "assistant"] * 3, start=1))
        assert await conversations.history(pool, "bob", "s", after=4, limit=1) == shown[4:5]
        assert await conversations.reset(pool, "bob", "s") == 6
        assert await conversations.history(pool, "bob", "s") == []
        assert await output(platform, "bob", "again", session_id="s") == "2"
        with pytest.raises(NotFound):
            await conversations.reset(pool, "bob", "other")
        with pytest.raises(NotFound):
            await conversations.history(pool, "bob", "other")


async def test_a_session_in_the_middle_of_a_turn_is_not_reset(settings, nc, pool):
    began, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Counting):
        async def complete(self, request, *, on_delta=None):
            began.set()
            await go_on.wait()
            return await super().complete(request)

    async with in_process(settings, nc, DurableAgent("bob", model=Slow())) as platform:
        run = await platform.start_run("bob", "hello", session_id="s")
        await began.wait()
        with pytest.raises(Conflict, match="middle of a turn"):
            await conversations.reset(pool, "bob", "s")
        go_on.set()
        await eventually(lambda: done(platform, run))


async def done(platform, run):
    return (await platform.run(run))["status"] == "completed"


async def test_an_idle_conversation_is_pruned_and_its_id_begins_anew_without_a_trace(settings, nc, pool):
    await configure(pool, "bob", session_ttl_seconds="0.3")
    async with in_process(settings, nc, DurableAgent("bob", model=Counting())) as platform:
        for _ in range(2):
            await output(platform, "bob", "old secret", session_id="s")

        async def gone():
            return await pool.fetchval("SELECT count(*) FROM sessions") == 0

        await eventually(gone)
        assert await pool.fetchval("SELECT count(*) FROM session_messages") == 0
        await configure(pool, "bob", session_ttl_seconds="1000")
        assert await output(platform, "bob", "new", session_id="s") == "2"
        assert await output(platform, "bob", "new", session_id="s") == "4"
    assert "old secret" not in str(await conversations.history(pool, "bob", "s"))


async def test_sessions_are_listed_with_their_cost(settings, nc, pool):
    async with in_process(settings, nc, DurableAgent("bob", model=ScriptedModel(*("ok",) * 5))) as platform:
        for session in ("a", "b"):
            await output(platform, "bob", "hello", session_id=session)
    listed = await conversations.sessions(pool, "bob")
    assert [(one["session_id"], one["messages"], one["tokens"]) for one in listed] == [("b", 2, 2), ("a", 2, 2)]
    before = (datetime.fromisoformat(listed[0]["updated_at"]), "b")
    assert await conversations.sessions(pool, "bob", before=before) == listed[1:]
    assert await conversations.find(pool, "a") == ["bob"]


async def test_the_model_is_told_how_far_background_work_is(settings, nc, pool):
    halfway, go_on = asyncio.Event(), asyncio.Event()

    @tool(background=True)
    async def work(ctx: Context) -> str:
        """Work."""
        await ctx.progress(0.4, "digging")

        async def dig() -> None:
            halfway.set()
            await go_on.wait()

        await ctx.step("dig", dig)
        return "done"

    @tool(background=True, retry=Retry(max_attempts=3, delay=600))
    async def flaky(step: StepContext) -> str:
        """Flaky."""
        await step.progress(0.1, "trying")
        raise OSError("not yet")

    model = ScriptedModel([Call("work"), Call("flaky")], "scheduled", lambda request: request.messages[0]["content"])
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[work, flaky])) as platform:
        await output(platform, "bob", "go", session_id="s")
        await halfway.wait()

        async def retrying():
            return await pool.fetchval("SELECT count(*) FROM journal WHERE kind = 'retry'")

        await eventually(retrying)
        said = await output(platform, "bob", "how far?", session_id="s")
        go_on.set()
    notes = [line for line in said.splitlines() if line.startswith("Background work:")]
    assert len(notes) == 2
    dig, retry = sorted(notes, key=lambda line: "flaky" in line)
    assert "40% digging" in dig
    assert "10% trying" in retry
    assert "attempt 1 of flaky failed, the next one is at" in retry
