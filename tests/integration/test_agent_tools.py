from __future__ import annotations

import asyncio

import orjson
import pytest
from pydantic import BaseModel

from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.engine import Context, Retry, StepContext
from perdure.engine.codec import short_hash
from perdure.errors import PermanentError, RetryableError, RunFailed
from perdure.testing.models import Call, ScriptedModel
from tests.integration.agent_support import configure, output, results, spoken, transcript
from tests.platform import in_process
from tests.support import eventually


def last_results(request):
    return " | ".join(one["content"] for one in request.messages if one["role"] == "tool")


async def test_each_model_call_and_each_tool_call_is_a_journaled_step(settings, nc, pool):
    keys = []

    @tool
    async def look(what: str, step: StepContext) -> str:
        """Look."""
        keys.append(step.idempotency_key)
        return f"{what} seen"

    @tool
    def count(n: int) -> int:
        """Count."""
        return n + 1

    model = ScriptedModel(
        [Call("look", {"what": "sea"}), Call("count", {"n": 1})], Call("count", {"n": 5}), last_results
    )
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[look, count])) as platform:
        reply = await platform.ask("bob", "go")
        assert reply["output"] == "sea seen | 2 | 6"
        steps = [one["name"] for one in (await platform.run(reply["run_id"]))["steps"]]
    assert [name for name in steps if name == "model"] == ["model"] * 3
    assert sorted(name for name in steps if name.startswith("tool:")) == ["tool:count", "tool:count", "tool:look"]
    assert len(set(keys)) == 1
    said = await transcript(pool, reply["run_id"])
    assert [one["role"] for one in said] == ["user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    ids = [call["id"] for one in said for call in one.get("tool_calls", [])]
    assert len(set(ids)) == 3, "an id names one call of the conversation"
    assert [one["tool_call_id"] for one in said if one["role"] == "tool"] == ids


async def test_several_calls_run_at_once_unless_told_otherwise(settings, nc):
    running, most = 0, 0
    both = asyncio.Event()

    @tool
    async def work(n: int) -> int:
        """Work."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        if most == 3:
            both.set()
        if parallel:
            await both.wait()
        running -= 1
        return n

    for parallel in (True, False):
        running = most = 0
        model = ScriptedModel([Call("work", {"n": n}) for n in range(3)], last_results)
        agent = DurableAgent("bob", model=model, tools=[work], parallel_tools=parallel)
        async with in_process(settings, nc, agent) as platform:
            assert await output(platform, "bob", "go") == "0 | 1 | 2"
        assert most == (3 if parallel else 1)


class Leaves(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LookupError("no such order"), "no such order"),
        (SystemExit(3), "SystemExit"),
        (Leaves("bye"), "bye"),
        (PermanentError("never"), "never"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
async def test_what_a_tool_raises_is_told_to_the_model_and_ends_nothing(settings, nc, error, told):
    @tool
    async def broken() -> str:
        """Break."""
        raise error

    @tool
    def broken_too() -> str:
        """Break."""
        raise error

    model = ScriptedModel([Call("broken"), Call("broken_too")], last_results)
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[broken, broken_too])) as platform:
        first, second = (await output(platform, "bob", "go")).split(" | ")
    for said in (first, second):
        assert told in orjson.loads(said)["error"]["message"]
        assert "Traceback" not in said


async def test_bad_arguments_and_unknown_tools_go_back_to_the_model(settings, nc):
    @tool
    def look(what: str) -> str:
        """Look."""
        return what

    model = ScriptedModel(
        [
            Call("look", "{broken"),
            Call("look", {"wat": 1}),
            Call("nothing"),
            Call("look", "[1]"),
            Call("look", {"what": "x"}),
        ],
        last_results,
    )
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[look])) as platform:
        said = (await output(platform, "bob", "go")).split(" | ")
    assert "not valid JSON" in said[0]
    assert "what: Field required" in said[1]
    assert "there is no tool 'nothing'; the tools are look" in said[2]
    assert "one JSON object" in said[3]
    assert said[4] == "x"


async def test_a_tool_is_tried_again_when_it_says_so_or_was_declared_so(settings, nc):
    tries = {"busy": 0, "flaky": 0, "hopeless": 0, "once": 0}

    @tool
    async def busy() -> str:
        """Busy."""
        tries["busy"] += 1
        if tries["busy"] < 3:
            raise RetryableError("busy", retry_after=0)
        return f"done at {tries['busy']}"

    @tool(retry=Retry(max_attempts=2, delay=0))
    async def flaky() -> str:
        """Flaky."""
        tries["flaky"] += 1
        if tries["flaky"] < 2:
            raise OSError("flaky")
        return "mended"

    @tool(retry=Retry(max_attempts=2, delay=0))
    async def hopeless() -> str:
        """Hopeless."""
        tries["hopeless"] += 1
        raise OSError("broken for good")

    @tool
    async def once() -> str:
        """Once."""
        tries["once"] += 1
        raise OSError("told at once")

    names = ["busy", "flaky", "hopeless", "once"]
    model = ScriptedModel([Call(name) for name in names], last_results)
    async with in_process(
        settings, nc, DurableAgent("bob", model=model, tools=[busy, flaky, hopeless, once])
    ) as platform:
        said = (await output(platform, "bob", "go")).split(" | ")
    assert said[:2] == ["done at 3", "mended"]
    assert "broken for good (after 2 attempts)" in said[2]
    assert "told at once" in said[3]
    assert tries == {"busy": 3, "flaky": 2, "hopeless": 2, "once": 1}


async def test_a_tool_that_takes_too_long_is_told_to_the_model(settings, nc, pool):
    @tool
    async def hang() -> str:
        """Hang."""
        await asyncio.Event().wait()
        return ""

    @tool(timeout=0.05)
    async def brief() -> str:
        """Hang."""
        await asyncio.Event().wait()
        return ""

    await configure(pool, "bob", tool_timeout_seconds=0.1)
    model = ScriptedModel([Call("hang"), Call("brief")], last_results)
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[hang, brief])) as platform:
        said = (await output(platform, "bob", "go")).split(" | ")
    assert "not done within 0.1 s" in said[0]
    assert "not done within 0.05 s" in said[1]


async def test_a_tool_with_the_context_makes_durable_steps_of_its_own(settings, nc):
    @tool
    async def many(n: int, ctx: Context) -> list[int]:
        """Many."""
        return await ctx.gather(*(ctx.step("square", square, at) for at in range(n)))

    async def square(n: int) -> int:
        return n * n

    @tool
    async def leaves(ctx: Context) -> None:
        """Leave."""
        raise SystemExit(1)

    model = ScriptedModel([Call("many", {"n": 3}), Call("leaves")], last_results)
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[many, leaves])) as platform:
        reply = await platform.ask("bob", "go")
        steps = [one["name"] for one in (await platform.run(reply["run_id"]))["steps"]]
    assert reply["output"].startswith("[0,1,4] | ")
    assert steps.count("square") == 3


async def test_the_last_model_call_must_answer_and_a_lowered_limit_ends_no_run(settings, nc, pool):
    @tool
    async def more() -> str:
        """More."""
        await configure(pool, "bob", max_iterations=2)
        await eventually(lambda: agent.config.get_setting("max_iterations") == 2)
        return "more"

    asked = []

    def always(request):
        asked.append((request.tool_choice, len(request.tools)))
        return "enough" if request.tool_choice == "none" else Call("more")

    agent = DurableAgent("bob", model=ScriptedModel(*(always,) * 20), tools=[more], max_iterations=9)
    async with in_process(settings, nc, agent) as platform:
        assert await output(platform, "bob", "go") == "enough"
    assert asked == [("auto", 1), ("none", 1)]


async def test_tools_and_their_choice_follow_the_configuration(settings, nc, pool):
    @tool
    def one() -> str:
        """One."""
        return "1"

    @tool
    def two() -> str:
        """Two."""
        return "2"

    seen = []

    def say(request):
        seen.append(([spec["function"]["name"] for spec in request.tools], request.tool_choice))
        return "ok"

    await configure(pool, "bob", tools_enabled=["two"], tool_choice="two")
    agent = DurableAgent("bob", model=ScriptedModel(Call("one"), say), tools=[one, two])
    async with in_process(settings, nc, agent) as platform:
        reply = await platform.ask("bob", "go")
    assert "there is no tool 'one'; the tools are two" in results(await transcript(pool, reply["run_id"]))[0]
    assert seen == [(["two"], "auto")], "a forced tool is forced once"
    assert agent.model.given.requests[0].tool_choice == "two"


async def test_a_tool_that_is_not_there_is_held_and_the_agent_says_why(settings, nc, pool):
    @tool
    def one() -> str:
        """One."""
        return "1"

    heard = []

    async def keep(message):
        heard.append(orjson.loads(message.data))

    agent = DurableAgent("bob", model=ScriptedModel(Call("one"), last_results), tools=[one])
    async with in_process(settings, nc, agent) as platform:
        await nc.subscribe("config.applied.bob", cb=keep)
        await nc.flush()
        await configure(pool, "bob", tools_enabled=["one", "three"], tool_choice="four")
        told = await eventually(lambda: [one["errors"] for one in heard if len(one["errors"]) == 2])
        assert told[0]["tools_enabled"] == "there is no tool three; the tools are one"
        assert "auto, none, required or a tool" in told[0]["tool_choice"]
        assert await output(platform, "bob", "go") == "1"


class Answer(BaseModel):
    city: str
    people: int


async def test_an_answer_of_a_declared_type_is_mended_within_bounds(settings, nc, pool):
    model = ScriptedModel("no json", '{"city": "Rome"}', '```json\n{"city": "Rome", "people": 3}\n```')
    agent = DurableAgent("bob", model=model, output_type=Answer)
    async with in_process(settings, nc, agent) as platform:
        reply = await platform.ask("bob", "go")
        assert reply["output"] == {"city": "Rome", "people": 3}
    assert model.requests[0].schema[0] == "Answer"
    assert "people: Field required" in model.requests[2].messages[-1]["content"]
    assert len(spoken(await transcript(pool, reply["run_id"]))) == 2, "the mending is not part of the conversation"


async def test_an_answer_that_never_fits_fails_the_run(settings, nc):
    model = ScriptedModel(*("nonsense",) * 20)
    async with in_process(settings, nc, DurableAgent("bob", model=model, output_type=Answer)) as platform:
        with pytest.raises(RunFailed, match="output type"):
            await platform.ask("bob", "go")
    assert len(model.requests) == 4


async def test_a_call_that_must_not_be_repeated_is_not_made_again_when_its_outcome_was_lost(settings, nc, pool):
    made = []

    @tool(idempotent=False)
    async def launch() -> str:
        """Launch."""
        made.append("launched")
        if len(made) == 1:
            raise RetryableError("the pad is wet", retry_after=0)  # it says itself that nothing was done
        return "launched"

    agent = DurableAgent("bob", model=ScriptedModel(Call("launch"), last_results), tools=[launch])
    async with in_process(settings, nc, agent) as platform:
        assert await output(platform, "bob", "go") == "launched"
        assert made == ["launched"] * 2
        # what a process leaves that was killed after the call began: its start, and no outcome
        call_id = f"call_{short_hash('lost', '0', '0')}"
        await pool.execute("INSERT INTO tool_starts (run_id, call_id) VALUES ('lost', $1)", call_id)
        said = await output(platform, "bob", "go", run_id="lost")
    assert orjson.loads(said)["error"]["type"] == "OutcomeUnknown"
    assert made == ["launched"] * 2
