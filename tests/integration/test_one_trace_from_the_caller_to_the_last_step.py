"""Traces: a real receiver of OTLP over HTTP gets one tree, from HTTP and NATS callers, and over a kill."""

from __future__ import annotations

import asyncio
import signal

import pytest

from perdure import BaseAgent, Context, workflow
from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.bus import wire
from perdure.errors import RunFailed
from perdure.llm.types import ModelReply, ToolRequest
from perdure.testing.models import ScriptedModel
from tests.agents.traced import Child, Mother
from tests.edge_support import web
from tests.otlp import Collector
from tests.platform import in_process
from tests.processes import processes
from tests.support import eventually

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{CALLER[0]}-{CALLER[1]}-01"


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Spans are sent at once, and nothing of the machine's environment counts."""
    for name in (
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_SDK_DISABLED",
        "OTEL_SERVICE_NAME",
        "OTEL_TRACES_EXPORTER",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
async def collector():
    async with Collector() as made:
        yield made


@pytest.fixture
def traced(settings, collector):
    return settings.model_copy(update={"otel_exporter_otlp_endpoint": collector.url})


class Shop(BaseAgent):
    @workflow
    async def run(self, ctx: Context, task: str) -> str:
        return await ctx.step("sell", self.sell, task)

    async def sell(self, task: str) -> str:
        if task == "bad":
            raise ValueError("postgresql://u:hunter2@db is down")
        return task


def ended(collector, name):
    return eventually(
        lambda: collector.named(name), timeout=30, message=f"span {name}; there are {[s.name for s in collector.spans]}"
    )


async def test_a_nats_callers_trace_goes_on_through_child_runs(traced, nc, collector):
    async with in_process(traced, nc, Mother, Child):
        reply = await nc.request("run.ask.mother", b'{"task": "x"}', timeout=20, headers={"traceparent": HEADER})
        assert b'"X"' in reply.data
        await ended(collector, "invoke_workflow mother")
        await ended(collector, "run.ask.*")
    wanted = {
        "run.ask.*": {
            "invoke_workflow mother": {
                "claim mother": {},
                "step first": {},
                "step second": {},
                "invoke_workflow child": {"claim child": {}, "step answer": {}},
            }
        }
    }
    await eventually(lambda: collector.tree(CALLER[1]) == wanted, message=f"{wanted}; there is {collector}")
    assert {span.trace for span in collector.spans} == {CALLER[0]}
    assert {span.service for span in collector.spans} == {"scheduler", "mother", "child"}
    run = collector.one("invoke_workflow mother")
    assert run.attributes["gen_ai.operation.name"] == "invoke_workflow"
    assert run.attributes["perdure.run.status"] == "completed"
    steps = collector.named("step first") + collector.named("step second")
    assert all(run.begin <= step.begin <= step.end <= run.end for step in steps)


async def test_an_http_callers_trace_goes_on_into_the_run(traced, nc, collector):
    async with in_process(traced, nc, Shop) as platform, web(traced, platform) as door:
        started = await door.post("/agents/shop/run", {"task": "x"}, headers={"traceparent": HEADER})
        await ended(collector, "invoke_workflow shop")
        assert (await door.http.get("/runs/nowhere")).status_code == 404
        assert (await door.http.get("/healthz")).status_code == 200
        await ended(collector, "GET /runs/{run_id}")
    steps = {"invoke_workflow shop": {"claim shop": {}, "step sell": {}}}
    wanted = {"POST /agents/{name}/run": {"run.start.*": steps}}
    await eventually(lambda: collector.tree(CALLER[1]) == wanted, message=f"{wanted}; there is {collector}")
    span = collector.one("POST /agents/{name}/run")
    assert (span.service, span.kind) == ("gateway", 2)
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["http.route"] == "/agents/{name}/run"
    assert collector.one("step sell").attributes["perdure.run.id"] == started["run_id"]
    assert not [each for each in collector.spans if "healthz" in each.name]


async def test_a_task_message_carries_its_trace_over_jetstream(traced, nc, collector):
    async with in_process(traced, nc, Shop):
        await nc.jetstream().publish("task.shop", b'{"task": "x"}', headers={"traceparent": HEADER})
        await ended(collector, "invoke_workflow shop")
        await ended(collector, "step sell")
    assert collector.one("invoke_workflow shop").parent == CALLER[1]
    assert collector.one("step sell").trace == CALLER[0]


async def test_models_and_tools_are_spans_by_the_conventions_and_hold_no_words(traced, nc, collector):
    @tool
    async def lookup(order: str) -> str:
        "Status of an order."
        return f"canary-result of {order}"

    asked = ModelReply(
        "", "tools", [ToolRequest("c1", "lookup", '{"order": "canary-argument"}')],
        model="m-1", provider="p", input_tokens=10, output_tokens=2,
    )  # fmt: skip
    agent = DurableAgent("clerk", model=ScriptedModel(asked, "canary-answer"), tools=[lookup])
    async with in_process(traced, nc, agent) as platform:
        await platform.ask("clerk", "canary-task", session_id="talk-1")
        await ended(collector, "invoke_agent clerk")
        await ended(collector, "execute_tool lookup")
        await eventually(lambda: len(collector.named("chat ScriptedModel")) == 2)
        await eventually(
            lambda: {span.parent for span in collector.spans} <= {"", *(each.id for each in collector.spans)}
        )
    chats = collector.named("chat ScriptedModel")
    assert len(chats) == 2
    assert chats[0].kind == 3
    said = chats[0].attributes
    assert (said["gen_ai.operation.name"], said["gen_ai.response.model"]) == ("chat", "m-1")
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (10, 2)
    assert said["gen_ai.conversation.id"] == "talk-1"
    assert said["gen_ai.agent.name"] == "clerk"
    call = collector.one("execute_tool lookup")
    assert call.attributes["gen_ai.tool.name"] == "lookup"
    parents = {span.id: span.name for span in collector.spans}
    assert parents[call.parent] == "step tool:lookup"
    assert parents[chats[0].parent].startswith("step ")
    assert len({span.trace for span in collector.spans}) == 1
    assert "canary" not in str(collector.spans)


async def test_a_failure_is_on_its_spans_without_the_password_that_it_names(traced, nc, collector):
    async with in_process(traced, nc, Shop) as platform:
        with pytest.raises(RunFailed):
            await platform.ask("shop", "bad")
        await ended(collector, "invoke_workflow shop")
        await ended(collector, "step sell")
    step, run = collector.named("step sell")[-1], collector.one("invoke_workflow shop")
    assert step.failed
    assert run.failed
    assert step.attributes["error.type"] == "ValueError"
    assert "is down" in step.said
    assert "hunter2" not in str(collector.spans)


async def test_a_collector_that_is_away_or_refuses_harms_no_run(traced, nc, collector):
    collector.status = 400
    async with in_process(traced, nc, Shop) as platform:
        assert (await platform.ask("shop", "x"))["output"] == "x"
        await eventually(lambda: collector.requests)
        assert (await platform.ask("shop", "y"))["output"] == "y"


async def test_what_is_no_trace_context_is_passed_over(traced, nc, collector):
    async with in_process(traced, nc, Shop):
        for bad in ("x" * 10_000, "00-" + "0" * 32 + "-00f067aa0ba902b7-01", HEADER.upper(), f"01{HEADER[2:]}"):
            reply = await nc.request("run.ask.shop", b'{"task": "x"}', timeout=20, headers={"traceparent": bad})
            assert b'"completed"' in reply.data
        await eventually(lambda: len(collector.named("invoke_workflow shop")) == 4)
    assert not any(span.parent for span in collector.named("invoke_workflow shop"))


async def test_over_a_kill_the_trace_goes_on_and_the_new_claim_is_linked_to_the_one_before(
    traced, nc, collector, tmp_path
):
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50", "AGENT": "mother"}
    async with in_process(traced, nc, Child), processes(traced, tmp_path) as programs:
        hanging = programs.start("tests.agents.traced", "one", HANG="1", **environment)
        asked = asyncio.create_task(
            nc.request("run.ask.mother", b'{"task": "x", "timeout": 60}', timeout=90, headers={"traceparent": HEADER})
        )
        await eventually(
            lambda: collector.named("claim mother") and collector.named("step first"),
            timeout=60,
            message=f"the first claim; {programs.said('one')}",
        )
        hanging.send(signal.SIGKILL)
        programs.start("tests.agents.traced", "two", **environment)
        assert b'"X"' in (await asked).data
        await ended(collector, "invoke_workflow mother")
        await ended(collector, "run.ask.*")
        await eventually(lambda: collector.whole({CALLER[1]}))  # over the kill, too, no span hangs in the air
    assert {span.trace for span in collector.spans} == {CALLER[0]}
    claims = collector.named("claim mother")
    assert claims[0].links == ()
    assert {claim.instance for claim in claims} == {"one", "two"}
    before = [claim for claim in claims if claim.instance == "one"][-1]
    after = next(claim for claim in claims if claim.instance == "two")
    assert (CALLER[0], before.id) in after.links
    run = collector.one("invoke_workflow mother")
    assert run.instance == "two"
    assert collector.named("step first")[0].parent == collector.named("step second")[-1].parent == run.id
    assert collector.tree(CALLER[1])["run.ask.*"]["invoke_workflow mother"]["invoke_workflow child"]


async def test_without_an_endpoint_no_header_goes_out(settings, nc):
    heard = await nc.subscribe("echo")
    task = asyncio.create_task(wire.request(nc, "echo", {}))
    message = await heard.next_msg(timeout=5)
    assert not message.headers
    await message.respond(b"{}")
    await task
