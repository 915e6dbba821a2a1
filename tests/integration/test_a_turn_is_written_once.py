"""A turn's opening, and its answer with the ends of turn and run: each is one statement with its row, counted once."""

from __future__ import annotations

import orjson
import pytest

from perdure import subjects
from perdure.agent.durable import DurableAgent
from perdure.agent.session import Sessions
from perdure.engine import workflow
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
    async with in_process(settings, nc) as platform:
        worker = (await platform.agent(DurableAgent("bob", model=model))).worker
        assert await output(platform, "bob", "hello", run_id="first", session_id="s") == "hi"
        assert not worker.fences, "what its own first try has done does not make it give up the run"
        assert spoken(await transcript(pool, "s")) == ONCE
        assert len(tries) == 2
        assert await output(platform, "bob", "and?", session_id="s") == "4", "the system's words, and three messages"
    assert await rows(pool, "first") == ["open turn", "model"]
    assert len(model.requests) == 2, "the model is not asked again"


async def ends(pool, run_id):
    row = await pool.fetchrow("SELECT status, output, end_seq, xmin::text AS at FROM runs WHERE run_id = $1", run_id)
    last = await pool.fetchval("SELECT xmin::text FROM journal WHERE run_id = $1 ORDER BY seq DESC LIMIT 1", run_id)
    return row["status"], row["output"], row["end_seq"], row["at"] == last


@pytest.mark.in_memory
async def test_an_answer_ends_its_run_in_the_same_commit_and_whoever_listens_is_told(settings, nc, pool):
    told = await nc.subscribe(subjects.run_events("one"))
    async with in_process(settings, nc, DurableAgent("bob", model=ScriptedModel("hi"), stream=False)) as platform:
        assert await output(platform, "bob", "hello", run_id="one", session_id="s") == "hi"
        events = {}
        while "run.completed" not in events:
            event = orjson.loads((await told.next_msg(timeout=10)).data)
            events[event["type"]] = event["seq"]
    assert events == {"run.started": 0, "step.started": 1, "step.completed": 2, "run.completed": 3}
    assert await ends(pool, "one") == ("completed", '"hi"', 3, True)


async def test_an_answer_does_not_end_a_run_whose_code_goes_on(settings, nc, pool):
    class Polite(DurableAgent):
        @workflow
        async def run(self, ctx, task):
            said = await super().run(ctx, task)
            return await ctx.step("thank", self.thank, said)

        async def thank(self, said: str) -> str:
            return f"{said}, and thank you"

    async with in_process(settings, nc, Polite("bob", model=ScriptedModel("hi"))) as platform:
        assert await output(platform, "bob", "hello", run_id="one", session_id="s") == "hi, and thank you"
    assert await rows(pool, "one") == ["open turn", "model", "thank"]


async def test_a_row_behind_the_last_one_keeps_its_run_open(pool):
    run = "INSERT INTO runs (run_id, agent_name, task, task_hash, status, epoch) VALUES ('r', 'a', '1', 'h', $1, 1)"
    await pool.execute(run, "running")
    last = "SELECT journal_last_row('r', 1, $1, '1', 'step', 's', 'h', 1, 1, 0, 0, '1', NULL, '\"out\"')"
    await pool.execute("SELECT journal_row('r', 1, 2, '!cancel', 'cancel', 'cancel', '', 1, 1, 0, 0, NULL)")
    assert await pool.fetchval(last, 1) is None
    assert await pool.fetchval("SELECT status FROM runs") == "running"
    assert await pool.fetchval(last, 3) is False
    assert tuple(await pool.fetchrow("SELECT status, end_seq FROM runs")) == ("completed", 4)
