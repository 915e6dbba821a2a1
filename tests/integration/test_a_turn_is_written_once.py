"""The opening of a turn and the answer that ends it: each one statement with its row, under the fence, counted once."""

from __future__ import annotations

import pytest

from perdure.agent.durable import DurableAgent
from perdure.agent.session import Sessions
from perdure.llm.types import ModelReply
from perdure.testing.models import ScriptedModel
from tests.integration.agent_support import output, spoken, transcript
from tests.platform import in_process
from tests.support import eventually

ONCE = [("user", "hello"), ("assistant", "hi")]


async def rows(pool, run_id):
    return [row["name"] for row in await pool.fetch("SELECT name FROM journal WHERE run_id = $1 ORDER BY seq", run_id)]


async def test_an_answer_of_a_run_that_was_given_to_others_is_not_appended(settings, nc, pool):
    class Slow:
        async def complete(self, request, *, on_delta=None):
            await pool.execute("UPDATE runs SET epoch = epoch + 1 WHERE run_id = 'lost'")
            return ModelReply("too late", "answer")

    async with in_process(settings, nc) as platform:
        worker = (await platform.agent(DurableAgent("bob", model=Slow()))).worker
        await platform.start_run("bob", "hello", run_id="lost", session_id="s")
        await eventually(lambda: fenced(worker))
    assert spoken(await transcript(pool, "s")) == [("user", "hello")]
    assert await rows(pool, "lost") == ["open turn"]


async def fenced(worker):
    return worker.fences


async def test_a_turn_of_a_run_that_was_given_to_others_is_not_opened(settings, nc, pool, monkeypatch):
    opens = Sessions.open_at_once

    async def late(self, connection, session, run_id, prompt, columns):
        await pool.execute("UPDATE runs SET epoch = epoch + 1 WHERE run_id = 'lost'")
        return await opens(self, connection, session, run_id, prompt, columns)

    monkeypatch.setattr(Sessions, "open_at_once", late)
    async with in_process(settings, nc) as platform:
        worker = (await platform.agent(DurableAgent("bob", model=ScriptedModel("hi")))).worker
        await platform.start_run("bob", "hello", run_id="lost", session_id="s")
        await eventually(lambda: fenced(worker))
    assert await transcript(pool, "s") == []
    assert await rows(pool, "lost") == []


@pytest.mark.parametrize("step", ["open_at_once", "append"])
@pytest.mark.parametrize("lost", ["question", "answer"])
async def test_what_was_written_without_an_answer_counts_once(settings, nc, pool, monkeypatch, step, lost):
    write, tries = getattr(Sessions, step), []

    async def over_a_bad_line(self, *given, **more):
        tries.append(step)
        if len(tries) == 1:
            if lost == "answer":
                await write(self, *given, **more)
            raise ConnectionResetError(f"the {lost} was lost")
        return await write(self, *given, **more)

    monkeypatch.setattr(Sessions, step, over_a_bad_line)
    model = ScriptedModel("hi", lambda request: str(len(request.messages)))
    async with in_process(settings, nc, DurableAgent("bob", model=model)) as platform:
        assert await output(platform, "bob", "hello", run_id="first", session_id="s") == "hi"
        assert spoken(await transcript(pool, "s")) == ONCE
        assert len(tries) == 2
        assert await output(platform, "bob", "and?", session_id="s") == "4", "the system's words, and three messages"
    assert await rows(pool, "first") == ["open turn", "model"]
    assert len(model.requests) == 2, "the model is not asked again"
