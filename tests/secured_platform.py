"""A whole platform whose every part is a user of its own, and a walk over all that it is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from nats.aio.client import Client as Nats
from synadia_ai.agents import Agents, Query, ResponseChunk

from config_manager.service import ConfigManager
from perdure.agent.base import BaseAgent
from perdure.agent.durable import DurableAgent
from perdure.agent.process import AgentProcess
from perdure.agent.tools import tool
from perdure.agent.triggers import on
from perdure.bus import permissions
from perdure.bus.permissions import Consumer, Permissions
from perdure.bus.service import Service
from perdure.client import Client
from perdure.engine import Context, workflow
from perdure.settings import Settings
from perdure.subjects import trigger_consumer
from perdure.testing.models import Call, ScriptedModel
from services.console.service import Console
from services.scheduler.service import Scheduler
from tests.edge_support import Web, events, web
from tests.support import eventually

STREAM = "ORDERS"
LARGE = 300_000  # characters: stored beside its row


class Greeter(BaseAgent):
    name = "greeter"

    @workflow
    async def run(self, ctx: Context, task: dict) -> dict:
        said = await ctx.step("say", self.say, task["to"])
        sent = await ctx.call("mailer", {"text": said})
        return {"said": said, "sent": sent}

    @workflow
    async def patient(self, ctx: Context, task: Any) -> Any:
        return await ctx.wait_signal("go")

    @workflow
    async def busy(self, ctx: Context, task: Any) -> None:
        await ctx.step("hang", self.hang)

    @on("orders.*", stream=STREAM)
    async def ordered(self, ctx: Context, task: dict) -> dict:
        return task

    async def say(self, to: str) -> str:
        return f"{self.config.get_setting('greeting', 'hello')} {to}"

    async def hang(self) -> None:
        await asyncio.Event().wait()


class Mailer(BaseAgent):
    name = "mailer"

    @workflow
    async def run(self, ctx: Context, task: dict) -> str:
        return await ctx.step("grow", lambda: "x" * LARGE)


def desk() -> DurableAgent:
    """An agent that asks a person before it pays."""

    @tool(requires_approval=True)
    async def pay(amount: int) -> str:
        """Pay."""
        return f"{amount} paid"

    def last(request: Any) -> str:
        return str([one["content"] for one in request.messages if one["role"] == "tool"][-1])

    return DurableAgent("desk", model=ScriptedModel(Call("pay", {"amount": 7}), last), tools=[pay])


def users(*, bucket: bool = False) -> list[Permissions]:
    """The NATS users of the three agents."""
    orders = Consumer(STREAM, trigger_consumer("greeter", "ordered", "orders.*"), "orders.*")
    return [
        permissions.agent("greeter", consume=[orders], bucket=bucket),
        permissions.agent("mailer", prompts=False, bucket=bucket),
        permissions.agent("desk", bucket=bucket),
    ]


@asynccontextmanager
async def secured_platform(place: Callable[[str], Settings]) -> AsyncIterator[Web]:
    """The services, two replicas of `greeter`, `mailer` and `desk`; `place` says who each of them is."""
    started: list[Service] = []
    parts: list[Service] = [
        ConfigManager(place("config-manager")),
        Scheduler(place("scheduler")),
        *(AgentProcess(Greeter, place("greeter").model_copy(update={"instance_id": f"g-{n}"})) for n in range(2)),
        AgentProcess(Mailer, place("mailer").model_copy(update={"agent_prompts": False})),
        AgentProcess(desk(), place("desk")),
        Console(place("console").model_copy(update={"console_port": 0})),
    ]
    try:
        for part in parts:
            await part.start()
            started.append(part)
        async with web(place("gateway")) as door:
            yield door
            for part in (*started, door.gateway):
                assert part.nats.refused == set(), part.name
    finally:
        for part in reversed(started):
            await part.stop()


async def walk(door: Web, place: Callable[[str], Settings]) -> None:
    """Use every way through the house, each as the one who may."""
    async with asyncio.timeout(90), Client(place("client")) as client, Client(place("operator")) as people:
        await _runs(client, people)
        await _configuration(client, people, door)
        await _queues_and_schedules(client, people)
        await _over_http(door)
        await _presence(people)
        for each in (client, people):
            assert (await each._connection.nats()).refused == set()


async def _runs(client: Client, people: Client) -> None:
    run = await client.start("greeter", {"to": "Anna"})
    seen = [event["type"] async for event in run.events()]
    assert (seen[0], seen[-1]) == ("run.started", "run.completed")
    assert await run.result() == {"said": "hello Anna", "sent": "x" * LARGE}
    waits = await client.start("greeter", None, workflow="patient")
    await waits.signal("go", 1)
    assert await waits.result() == 1
    asked = await people.request("run.ask.mailer", {"task": {}, "timeout": 10})
    assert asked["status"] == "completed"
    busy = await client.start("greeter", None, workflow="busy")

    async def hangs() -> bool:
        return bool((await people.request("run.get", {"run_id": busy.run_id}))["status"] == "running")

    await eventually(hangs)
    await busy.cancel("enough")

    async def cancelled() -> bool:
        return bool((await people.request("run.get", {"run_id": busy.run_id}))["status"] == "cancelled")

    await eventually(cancelled)

    async def ordered() -> bool:
        found = (await people.request("run.list", {"agent": "greeter", "workflow": "ordered"}))["runs"]
        return [each["status"] for each in found] == ["completed"]

    await eventually(ordered)


async def _configuration(client: Client, people: Client, door: Web) -> None:
    await people.request("config.set.greeter", {"configurations": {"greeting": "good day"}})

    async def greets() -> bool:
        said = await client.ask("greeter", {"to": "Bob"})
        return bool(said["said"] == "good day Bob")

    await eventually(greets)
    assert (await people.request("config.list"))["status"] == "success"
    body = {"configurations": {"greeting": "hey"}, "instances": 1, "bake_seconds": 0.2}
    [target] = (await people.request("config.rollout.greeter", body))["targets"]
    assert target in ("g-0", "g-1")

    async def rolled() -> bool:
        [newest, *_] = (await people.request("config.rollout.greeter", {"action": "status"}))["rollouts"]
        return bool(newest["state"] == "done")

    await eventually(rolled, timeout=20)

    async def shown() -> bool:
        return bool((await door.get("/config/greeter"))["configurations"]["greeting"] == "hey")

    await eventually(shown)


async def _queues_and_schedules(client: Client, people: Client) -> None:
    await people.request("config.set.line", {"configurations": {"queue_concurrency": "1"}})
    first, second = [await client.start("greeter", None, workflow="patient", queue="line") for _ in range(2)]
    assert [each["queue"] for each in await people.queues("line")] == ["line"]
    for run in (first, second):
        await run.signal("go", 2)
        assert await run.result() == 2
    said = {"name": "daily", "agent": "mailer", "cron": "0 9 * * *", "timezone": "UTC", "task": {}}
    await people.request("schedule.set", said)
    assert (await people.request("schedule.list"))["schedules"]
    moments = {"name": "daily", "from": "2025-03-01T00:00:00Z", "to": "2025-03-02T00:00:00Z"}
    [made] = (await people.request("schedule.backfill", moments))["run_ids"]
    assert await client.run(made).result()
    await people.request("schedule.delete", {"name": "daily"})


async def _over_http(door: Web) -> None:
    made = await door.post("/agents/greeter/run", {"task": None, "workflow": "patient"})
    await door.post(f"/runs/{made['run_id']}/signal/go", 3)
    kinds = [each.kind async for each in events(door.http, f"/runs/{made['run_id']}/events")]
    assert kinds[-1] == "run.completed"
    assert "greeter" in {each["name"] for each in (await door.get("/agents"))["agents"]}
    assert (await door.get("/readyz"))["status"] in ("ok", "warning")


async def _presence(people: Client) -> None:
    nats = await people._connection.nats()
    reply = orjson.loads((await nats.request("$SRV.INFO.scheduler", b"", timeout=5)).data)
    assert reply["name"] == "scheduler"
    asked = await nats.request(f"health.scheduler.{reply['id']}", b"", timeout=5)
    assert orjson.loads(asked.data)["status"] in ("ok", "warning")


async def over_nats_alone(nc: Nats) -> None:
    """What clients do that have none of our code: tasks, and prompts with a question."""
    done = await nc.subscribe("run.ended.mailer.*")
    await nc.jetstream().publish("task.mailer", b'{"task": {}}')
    assert orjson.loads((await done.next_msg(timeout=20)).data)["agent"] == "mailer"
    agents = Agents(nc=nc)

    async def found() -> list[Any]:
        return [each for each in await agents.discover(stall=0.2) if each.agent == "desk"]

    [agent] = await eventually(found)
    said = []
    async for chunk in agent.prompt("pay"):
        if isinstance(chunk, Query):
            await chunk.reply("yes")
        elif isinstance(chunk, ResponseChunk):
            said.append(chunk.text)
    assert "paid" in "".join(said)
    assert (await agent.status()).agent == "desk"
    await agents.close()
