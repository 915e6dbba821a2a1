"""With keys, a dump of every store and NATS' own files show nothing that was said to a run or by one, and keys change
under load."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from perdure import Client
from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.agent.triggers import on
from perdure.client.types import TERMINAL_EVENTS
from perdure.engine import Context, workflow
from perdure.errors import ApiError
from perdure.testing.models import Call, ScriptedModel
from services.scheduler.service import Scheduler
from tests.edge_support import web
from tests.engine_support import until
from tests.integration.agent_support import configure
from tests.integration.test_what_is_stored_can_be_sealed import CANARY, K1, K2, Miner, stores, with_keys
from tests.platform import in_process
from tests.support import eventually

EVERYWHERE = {"text": CANARY}


class Mine(Miner):
    name = "mine"

    @workflow
    async def patient(self, ctx: Context, task: dict[str, Any]) -> Any:
        return await ctx.wait_signal("up")

    @workflow
    async def asks(self, ctx: Context, task: dict[str, Any]) -> Any:
        return await ctx.call("mine", {"text": task["text"]}, workflow="below")

    @on("mine.orders")
    async def ordered(self, ctx: Context, task: dict[str, int]) -> None:
        """Takes no text."""


async def holds(pool: Any, redis: Any, nc: Any, folder: Path) -> set[str]:
    """Where the canary is: tables, keys of Redis, streams, and files of NATS."""
    found = await stores(pool, redis, nc)
    files = await asyncio.to_thread(lambda: {str(f): f.read_bytes() for f in folder.rglob("*") if f.is_file()})
    assert any(len(data) > 1000 for data in files.values())
    return {name for name, data in {**found, **files}.items() if CANARY.encode() in data}


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
async def test_what_people_say_about_runs_stands_nowhere(settings, servers, nc, pool, redis, sealed):
    used = with_keys(settings, K1) if sealed else settings
    async with in_process(used, nc, Mine) as platform, Client(used) as client:
        for run_id in ("cancelled", "terminated"):
            await platform.start_run("mine", EVERYWHERE, workflow="patient", run_id=run_id)
            await until(platform, run_id, "waiting")
        await platform.start_run("nobody", EVERYWHERE, run_id="never-began")
        for act, run_id in (("cancel", "cancelled"), ("cancel", "never-began"), ("terminate", "terminated")):
            await platform.request(f"run.{act}", {"run_id": run_id, "reason": f"for {CANARY}"})
            ended = await until(platform, run_id, "cancelled")
            assert ended["error"]["message"] == f"for {CANARY}"
            events = [event async for event in client.run(run_id).events()]
            assert events[-1]["type"] in TERMINAL_EVENTS
            assert CANARY in str(events[-1]["data"])
        schedule = {"name": "daily", "agent": "mine", "workflow": "asks", "cron": "0 9 * * *", "task": EVERYWHERE}
        await platform.request("schedule.set", schedule)
        for reply in (await platform.request("schedule.get", {"name": "daily"}), await first_of_list(platform)):
            assert reply["schedule"]["task"] == EVERYWHERE
        async with web(used, platform) as door:
            assert CANARY in (await door.http.get("/runs/terminated/events")).text
        day = {"name": "daily", "from": "2025-03-01T00:00:00Z", "to": "2025-03-02T00:00:00Z"}
        [made] = (await platform.request("schedule.backfill", day))["run_ids"]
        assert (await until(platform, made, "completed"))["output"] == f"{CANARY} was found"
        await pool.execute("UPDATE schedules SET next_at = next_at - interval '1 day'")  # nine o'clock has passed
        await eventually(lambda: pool.fetchval("SELECT last_run_id IS NOT NULL FROM schedules"))
        ticked = await pool.fetchval("SELECT last_run_id FROM schedules")
        assert (await until(platform, ticked, "completed"))["output"] == f"{CANARY} was found"
        await nc.publish("mine.orders", CANARY.encode(), headers={"about": CANARY})
        await eventually(lambda: pool.fetchval("SELECT count(*) = 1 FROM dead_letters"))
        await platform.start_run("mine", EVERYWHERE, workflow="below", callback="ends.of.mine", run_id="tells")
        await eventually(lambda: pool.fetchval("SELECT bool_and(state = 'delivered') FROM callbacks"))
        await nc.flush()
        shown = await holds(pool, redis, nc, servers.nats.data_dir)
        assert ({"runs", "journal", "schedules", "dead_letters", "RUN_EVENTS"} <= shown) is not sealed
        assert not (sealed and shown), shown


async def first_of_list(platform: Any) -> dict[str, Any]:
    [schedule] = (await platform.request("schedule.list", {}))["schedules"]
    return {"schedule": schedule}


async def test_a_schedule_whose_task_cannot_be_opened_pauses_and_says_why(settings, nc, pool):
    async with in_process(with_keys(settings, K1), nc) as platform:
        said = {"name": "daily", "agent": "mine", "cron": "0 9 * * *", "task": EVERYWHERE}
        await platform.request("schedule.set", said)
    async with in_process(with_keys(settings, K2), nc) as platform:
        await pool.execute("UPDATE schedules SET next_at = now()")
        await eventually(lambda: pool.fetchval("SELECT paused FROM schedules"))
        shown = (await platform.request("schedule.get", {"name": "daily"}))["schedule"]
        assert "sealed with key 'k1', and this process has only k2" in shown["error"]
        day = {"name": "daily", "from": "2025-03-01T00:00:00Z", "to": "2025-03-02T00:00:00Z"}
        with pytest.raises(ApiError, match="key 'k1'"):
            await platform.request("schedule.backfill", day)
        assert await pool.fetchval("SELECT count(*) FROM runs") == 0


async def test_what_agents_and_people_say_to_each_other_stands_nowhere(settings, servers, nc, pool, redis, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL"):
        monkeypatch.delenv(name, raising=False)

    @tool
    async def fails(what: str) -> str:
        """It fails."""
        raise ValueError(f"no {what}")

    @tool(requires_approval=True)
    async def careful(what: str) -> str:
        """Ask first."""
        return f"{what} was allowed"

    said = ScriptedModel(
        Call("fails", {"what": CANARY}), Call("remember", {"text": f"Anna likes {CANARY}"}),
        Call("careful", {"what": "gold"}), f"{CANARY} ended",
    )  # fmt: skip
    used = with_keys(settings, K1)
    await configure(pool, "desk", memory_enabled="true")
    agent = DurableAgent("desk", model=said, tools=[fails, careful])
    async with in_process(used, nc, agent) as platform, Client(used) as client:
        turn = await client.start("desk", f"do {CANARY}", session_id="acme__s")

        async def asked() -> Any:
            return (await platform.request("run.approvals", {"run_id": turn.run_id}))["approvals"]

        [approval] = await eventually(asked)
        edited = {"decision": "edit", "arguments": {"what": f"a {CANARY}"}, "reason": f"rather {CANARY}"}
        which = {key: approval[key] for key in ("call_id", "arguments_hash")}
        await platform.request("run.approve", {"run_id": turn.run_id, **which, **edited})
        assert CANARY in str(await turn.result(timeout=10))
        told = " ".join(str(each.get("content")) for each in said.requests[-1].messages)
        assert f"no {CANARY}" in told
        assert f"a {CANARY} was allowed" in told
        assert await pool.fetchval("SELECT count(*) FROM memories") == 1
        tenants = await pool.fetch("SELECT message::jsonb ->> 'tenant' AS tenant FROM session_messages")
        assert {row["tenant"] for row in tenants} == {"acme"}, "under the tenant's own data key"
        assert await holds(pool, redis, nc, servers.nats.data_dir) == set()


async def test_keys_change_under_load_and_every_run_completes(settings, nc, pool):
    """The three steps of the guide, each with one process after the other, while runs begin and go on."""
    async with in_process(with_keys(settings, K1), nc, Two) as platform:
        started: list[str] = []

        async def load() -> None:
            while True:
                started.append(await platform.start_run("miner", {"text": f"{CANARY} {len(started)}"}, workflow="two"))
                await asyncio.sleep(0.02)

        async def ended(more: int) -> None:
            count = "SELECT count(*) FROM runs WHERE status = 'completed'"
            before = await pool.fetchval(count)
            await eventually(lambda: _at_least(pool, count, before + more), timeout=30)

        working = asyncio.create_task(load())
        try:
            await ended(10)
            for number, keys in enumerate(((K1, K2), (K2, K1))):
                changed = {"encryption_keys": ",".join(keys)}
                await platform.start(
                    Scheduler(with_keys(settings, *keys).model_copy(update={"instance_id": f"s{number}"}))
                )
                await platform.services.pop(1).stop()
                await ended(5)
                await platform.agent(Two, **changed)
                await platform.services.pop(1).stop()
                await ended(10)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        await eventually(lambda: pool.fetchval("SELECT bool_and(status = 'completed') FROM runs"), timeout=30)
        assert await pool.fetchval("SELECT count(*) FROM runs") >= len(started) >= 30
        tasks = await pool.fetch("SELECT DISTINCT task::jsonb ->> 'key' AS key FROM runs")
        assert {row["key"] for row in tasks} == {"k1", "k2"}


async def _at_least(pool: Any, count: str, number: int) -> bool:
    return bool(await pool.fetchval(count) >= number)


class Two(Miner):
    name = "miner"

    @workflow
    async def two(self, ctx: Context, task: dict[str, Any]) -> str:
        first = await ctx.step("dig", self.dig, task["text"])
        await ctx.sleep("rest", 0.05)
        return await ctx.step("dig", self.dig, first)
