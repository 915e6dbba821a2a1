from __future__ import annotations

import time

import orjson
import pytest

from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.errors import RunFailed
from perdure.testing import faults
from perdure.testing.faults import FaultServer
from perdure.testing.models import Call, ScriptedModel
from tests.integration.agent_support import configure, output
from tests.platform import in_process
from tests.support import eventually


@pytest.fixture
async def main(monkeypatch):
    async with FaultServer() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", "main-key")
        yield running


@pytest.fixture
async def second(monkeypatch):
    async with FaultServer() as running:
        monkeypatch.setenv("SECOND_KEY", "second-key")
        yield running


def bob(**more):
    return DurableAgent("bob", role="a clerk", **more)


async def with_fallback(pool, second, **more):
    providers = {"second": {"base_url": second.url, "api_key": "secret://env/SECOND_KEY", "model": "small"}}
    await configure(pool, "bob", llm_providers=providers, llm_fallbacks="second", **more)


@pytest.mark.parametrize(
    "behaviour", [faults.status(500), faults.status(401), faults.status(404), faults.drop(), faults.cut("ha")]
)
async def test_the_next_endpoint_answers_when_the_first_one_fails(settings, nc, pool, main, second, behaviour):
    main.always(behaviour)
    second.always(faults.answer("from the second"))
    await with_fallback(pool, second)
    async with in_process(settings, nc, bob()) as platform:
        reply = await platform.ask("bob", "hello")
        assert reply["output"] == "from the second"
        [step] = [one for one in (await platform.run(reply["run_id"]))["steps"] if one["name"] == "model"]
    assert (step["result"]["provider"], step["result"]["input_tokens"]) == ("second", 7)
    assert second.asked[0].headers["authorization"] == "Bearer second-key"
    assert second.asked[0].json["model"] == "small"
    assert len(main.asked) == 1


async def test_a_fallback_speaks_its_own_protocol_whatever_the_first_endpoint_speaks(settings, nc, pool, main, second):
    main.always(faults.status(500))
    providers = {"second": {"base_url": second.url, "model": "small", "api": "chat"}}
    await configure(pool, "bob", llm_providers=providers, llm_fallbacks="second", llm_api="responses")
    async with in_process(settings, nc, bob()) as platform:
        assert "As a clerk" in await output(platform, "bob", "hello")
    assert [main.asked[0].path, second.asked[0].path] == ["/v1/responses", "/v1/chat/completions"]


async def test_when_all_fail_the_error_names_each_of_them(settings, nc, pool, main, second):
    main.always(faults.status(401, "first"))
    second.always(faults.status(403, "other"))
    await with_fallback(pool, second)
    async with in_process(settings, nc, bob()) as platform:
        with pytest.raises(RunFailed, match=r"answered 401: first.*answered 403: other"):
            await platform.ask("bob", "hello")


async def test_a_fallback_that_is_no_provider_is_an_error_only_when_it_is_needed(settings, nc, pool, main):
    main.script(faults.answer("fine"))
    main.always(faults.status(401))
    await configure(pool, "bob", llm_fallbacks="nobody/x")
    async with in_process(settings, nc, bob()) as platform:
        assert await output(platform, "bob", "hello") == "fine"
        with pytest.raises(RunFailed, match="'nobody' is no provider"):
            await platform.ask("bob", "hello")


async def test_an_endpoint_that_keeps_failing_is_left_alone_for_a_while(settings, nc, pool, main, second):
    main.always(faults.status(500))
    second.always(faults.answer("from the second"))
    await with_fallback(pool, second)
    async with in_process(settings, nc, bob()) as platform:
        for _ in range(8):
            assert await output(platform, "bob", "hello") == "from the second"
    assert len(main.asked) == 5
    assert len(second.asked) == 8


async def test_a_provider_named_by_sql_answers_over_its_own_protocol_from_the_next_call_on(
    settings, nc, pool, main, second
):
    main.always(faults.answer("from main"))
    body = {"output": [{"type": "message", "content": [{"type": "output_text", "text": "from responses"}]}]}
    second.always(faults.raw(orjson.dumps(body)))
    async with in_process(settings, nc, bob(stream=False)) as platform:
        assert await output(platform, "bob", "hello") == "from main"
        providers = {"second": {"base_url": second.url, "model": "m", "api": "responses"}}
        await configure(pool, "bob", llm_providers=providers, llm_provider="second")

        async def answers():
            return await output(platform, "bob", "hello") == "from responses"

        await eventually(answers)
    assert second.asked[0].path == "/v1/responses"


async def test_calls_over_the_shared_limit_wait_without_holding_the_run_in_memory(settings, nc, pool, main):
    main.always(faults.answer("hi"))
    await configure(pool, "bob", rate_limit=600)  # 600 a minute in windows of a minute; the first 600 are free
    async with in_process(settings, nc, bob(), bob()) as platform:
        await output(platform, "bob", "hello")
        await configure(pool, "bob", rate_limit=1)

        async def limited():
            run = await platform.start_run("bob", "hello")
            await eventually(lambda: waits_or_ended(platform, run))
            return (await platform.run(run))["status"] == "waiting"

        await eventually(limited)
        before = len(main.asked)
        runs = [await platform.start_run("bob", "hello") for _ in range(3)]
        for run in runs:
            await eventually(lambda run=run: waits_or_ended(platform, run))
        assert [(await platform.run(run))["status"] for run in runs] == ["waiting"] * 3
    assert len(main.asked) == before


async def waits_or_ended(platform, run):
    return (await platform.run(run))["status"] in {"waiting", "completed"}


@tool
def work() -> str:
    """Work."""
    return "done"


async def test_a_run_ends_when_its_budget_of_tokens_is_used_up_and_says_which(settings, nc, pool):
    await configure(pool, "bob", budget_run_tokens=5)
    model = ScriptedModel(*(Call("work"),) * 9)  # two tokens a call
    async with in_process(settings, nc, bob(model=model, tools=[work], max_iterations=20)) as platform:
        with pytest.raises(RunFailed, match="budget_run_tokens is used up: 6 of 5"):
            await platform.ask("bob", "go")
    assert len(model.requests) == 3


async def test_a_conversation_has_a_budget_of_cost_over_all_its_turns(settings, nc, pool):
    await configure(pool, "bob", budget_session_cost=0.5, llm_price_input=100_000, llm_price_output=100_000)
    async with in_process(settings, nc, bob(model=ScriptedModel(*("ok",) * 9))) as platform:
        for _ in range(3):
            await output(platform, "bob", "go", session_id="s")  # 0.2 a turn
        with pytest.raises(RunFailed, match=r"budget_session_cost is used up: 0\.6 of 0\.5"):
            await platform.ask("bob", "go", session_id="s")
        await output(platform, "bob", "go", session_id="other")
    row = await pool.fetchrow("SELECT input_tokens, output_tokens, cost FROM sessions WHERE session_id = 's'")
    assert (row["input_tokens"], row["output_tokens"], round(row["cost"], 6)) == (3, 3, 0.6)


async def test_a_budget_of_time_ends_a_run_between_two_model_calls(settings, nc, pool):
    @tool
    def slow() -> str:
        """Slow."""
        time.sleep(0.15)
        return "done"

    await configure(pool, "bob", budget_run_seconds=0.1)
    async with in_process(settings, nc, bob(model=ScriptedModel(Call("slow"), "x"), tools=[slow])) as platform:
        with pytest.raises(RunFailed, match="budget_run_seconds"):
            await platform.ask("bob", "go")
