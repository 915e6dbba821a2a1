"""AG-UI: the same stream in the events of that protocol, read with its own types."""

from __future__ import annotations

from typing import Any

import httpx2
import orjson
import pytest
from ag_ui.core import Event as UiEvent
from ag_ui.core import RunAgentInput, UserMessage
from pydantic import TypeAdapter

from perdure.agent.base import BaseAgent
from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.engine import Context, Retry, workflow
from perdure.errors import PermanentError
from perdure.testing.models import Call, ScriptedModel
from tests.edge_support import Web, all_events, events, problem, web
from tests.platform import in_process
from tests.support import eventually

UI: TypeAdapter[Any] = TypeAdapter(UiEvent)


@tool
async def weather(city: str) -> str:
    """The weather of a city."""
    if city == "Atlantis":
        raise PermanentError("it is under water")
    return f"rain in {city}"


class Clerk(BaseAgent):
    name = "clerk"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        await ctx.gather(ctx.step("count", self.count, 1), ctx.step("count", self.count, 2))
        await ctx.emit({"page": 7}, type="page.turned")
        if task == "wait":
            await ctx.wait_signal("go")
        if task == "fail":
            await ctx.step("break", self.broken, retry=Retry(max_attempts=1))
        if task == "long":
            await ctx.step("long", self.long)
        return {"counted": 2}

    async def count(self, n: int) -> int:
        return n

    async def long(self) -> str:
        return "x" * 100_000

    async def broken(self) -> None:
        raise ValueError("no such luck")


def checked(seen: list[Any]) -> list[Any]:
    """Events of one run, in an order that the protocol allows: each thing begins, goes on and ends once."""
    told = [UI.validate_python(each.data) for each in seen]
    assert [each.type.value for each in told].count("RUN_STARTED") == 1
    assert told[0].type == "RUN_STARTED"
    assert told[-1].type in ("RUN_FINISHED", "RUN_ERROR")
    places = [tuple(map(int, each.id.split("."))) for each in seen]
    assert places == sorted(set(places))
    open_: set[str] = set()
    for each in told:
        kind = each.type.value
        if kind.startswith("TEXT_MESSAGE"):
            name = each.message_id
        elif kind.startswith("TOOL_CALL") and kind != "TOOL_CALL_RESULT":
            name = each.tool_call_id
        elif kind.startswith("STEP"):
            name = each.step_name
        else:
            continue
        if kind.endswith(("START", "STARTED")):
            assert name not in open_, (kind, name)
            open_.add(name)
        else:
            assert name in open_, (kind, name)
            if kind.endswith(("END", "FINISHED")):
                open_.remove(name)
    assert not open_
    return told


def texts(told: list[Any]) -> dict[str, str]:
    """What each message says."""
    found: dict[str, str] = {}
    for each in told:
        if each.type == "TEXT_MESSAGE_CONTENT":
            found[each.message_id] = found.get(each.message_id, "") + each.delta
    return found


async def started(door: Web, agent: str, text: str, run_id: str) -> list[Any]:
    """The events of a run that a client of AG-UI starts."""
    said = RunAgentInput(
        thread_id="talk", run_id=run_id, state={}, messages=[UserMessage(id="m", content=text)], tools=[], context=[],
        forwarded_props={},
    )  # fmt: skip
    body = said.model_dump(by_alias=True, mode="json")
    return [each async for each in events(door.http, f"/agents/{agent}/ag-ui", method="POST", json=body)]


@pytest.fixture
async def both(settings, nc):
    calls = [Call("weather", {"city": "Rome"}), Call("weather", {"city": "Atlantis"})]
    bob = DurableAgent("bob", model=ScriptedModel(calls, "It rains in Rome."), tools=[weather])
    async with in_process(settings, nc, Clerk, bob) as platform, web(settings, platform) as one, web(settings) as two:
        yield one, two


async def test_a_turn_of_an_agent_is_messages_and_tool_calls(both: tuple[Web, Web]):
    one, _ = both
    seen = await started(one, "bob", "the weather?", "r-1")
    told = checked(seen)
    assert (told[0].thread_id, told[0].run_id) == ("talk", "r-1")
    assert list(texts(told).values()) == ["It rains in Rome."]
    calls = {each.tool_call_id: each.tool_call_name for each in told if each.type == "TOOL_CALL_START"}
    arguments = {each.tool_call_id: orjson.loads(each.delta) for each in told if each.type == "TOOL_CALL_ARGS"}
    results = {each.tool_call_id: each.content for each in told if each.type == "TOOL_CALL_RESULT"}
    assert list(calls.values()) == ["weather", "weather"]
    assert {arguments[each]["city"]: "rain in Rome" in results[each] for each in calls} == {
        "Rome": True,
        "Atlantis": False,
    }
    assert (told[-1].result, told[-1].outcome.type) == ("It rains in Rome.", "success")
    # the same input again is the same run, told again
    again = await started(one, "bob", "the weather?", "r-1")
    assert [each.data for each in again] == [each.data for each in seen]


async def test_steps_events_and_each_kind_of_end_are_told(both: tuple[Web, Web]):
    one, _ = both
    for task, end in (("well", "RUN_FINISHED"), ("fail", "RUN_ERROR"), ("long", "RUN_FINISHED")):
        told = checked(await started(one, "clerk", task, f"r-{task}"))
        assert told[-1].type == end
        names = [each.step_name for each in told if each.type == "STEP_FINISHED"]
        assert [name.partition(" ")[0] for name in names[:2]] == ["count", "count"]
        custom = [each for each in told if each.type == "CUSTOM" and each.name == "page.turned"]
        assert [each.value["page"] for each in custom] == [7]
        if task == "fail":
            assert "no such luck" in told[-1].message
        else:
            assert orjson.loads(list(texts(told).values())[-1]) == {"counted": 2}


async def test_a_reader_that_is_cut_after_every_event_misses_none_and_sees_none_twice(both: tuple[Web, Web]):
    one, two = both
    await one.post("/agents/clerk/run", {"task": "wait", "run_id": "r-1"})
    seen: list[Any] = []
    last: str | None = None
    while last is None or seen[-1].data["type"] != "RUN_FINISHED":
        http = (one, two)[len(seen) % 2].http
        async for event in events(http, "/runs/r-1/events?format=ag-ui", last=last):
            seen.append(event)
            last = event.id
            if event.data["type"] == "CUSTOM" and event.data["name"] == "run.waiting":
                await one.post("/runs/r-1/signal/go")
            break
    checked(seen)
    whole = await all_events(two.http, "/runs/r-1/events?format=ag-ui")
    assert [each.data for each in whole] == [each.data for each in seen]
    assert await all_events(one.http, "/runs/r-1/events?format=ag-ui", last=last) == []
    problem(await one.http.get("/runs/r-1/events?format=ag-ui", headers={"Last-Event-ID": "7"}), "invalid_request", 400)


async def test_a_cancelled_run_ends_as_such_and_what_cannot_be_run_is_refused(both: tuple[Web, Web]):
    one, _ = both
    await one.post("/agents/clerk/run", {"task": "wait", "run_id": "r-1"})

    async def waits() -> bool:
        return (await one.get("/runs/r-1"))["status"] == "waiting"

    await eventually(waits)
    await one.post("/runs/r-1/cancel")
    told = checked(await all_events(one.http, "/runs/r-1/events?format=ag-ui"))
    assert told[-1].outcome.type == "cancelled"
    good = {"threadId": "t", "runId": "r-2", "messages": [{"id": "m", "role": "user", "content": "x"}]}
    for wrong, status in (
        ({"threadId": "a b"}, 400),
        ({"messages": []}, 400),
        ({"messages": [{"id": "m", "role": "assistant", "content": "x"}]}, 400),
        ({"tools": [{"name": "x"}]}, 400),
    ):
        answer: httpx2.Response = await one.http.post("/agents/clerk/ag-ui", json={**good, **wrong})
        problem(answer, "invalid_request", status)
    problem(await one.http.post("/agents/nobody/ag-ui", json=good), "not_found", 404)
