"""Over HTTP: families of runs, one action on many runs, queues and schedules; each for the caller's tenant alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.edge import keys
from perdure.edge.keys import pepper
from perdure.engine import Context, workflow
from tests.edge_support import Web, problem, web
from tests.platform import InProcess, in_process
from tests.support import eventually


class Clerk(BaseAgent):
    name = "clerk"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        if task == "parent":
            return await ctx.call("clerk", "child")
        if task == "wait":
            await ctx.wait_signal("go")
        return task


@pytest.fixture
async def both(settings, nc):
    async with in_process(settings, nc, Clerk) as platform, web(settings, platform) as door:
        yield platform, door


async def key(door: Web, **said: Any) -> dict[str, dict[str, str]]:
    """The header of a new key, as an argument of a request."""
    under = await asyncio.to_thread(pepper, door.gateway.settings)
    made = await keys.create(door.gateway.pool, under, **{"name": "test", "role": "operator", **said})
    return {"headers": {"Authorization": f"Bearer {made.key}"}}


async def waiting(platform: InProcess, *run_ids: str) -> None:
    async def all_wait() -> bool:
        return {(await platform.run(run_id))["status"] for run_id in run_ids} == {"waiting"}

    await eventually(all_wait)


async def test_one_action_on_many_runs_reaches_those_of_the_caller_alone(both: tuple[InProcess, Web]):
    platform, door = both
    acme, evil, own = await key(door, tenant="acme"), await key(door, tenant="evil"), await key(door)
    narrow = await key(door, tenant="acme", agents=["clerk"])
    for who in (acme, evil, own):
        for number in (1, 2, 3):
            await door.post("/agents/clerk/run", {"task": "wait", "run_id": f"r-{number}"}, **who)
    ids = [f"{mark}r-{number}" for mark in ("acme__", "evil__", "") for number in (1, 2, 3)]
    await waiting(platform, *ids)
    bulk = {"action": "cancel", "filter": {"agent": "clerk"}}
    for who in (acme, evil, own):
        assert (await door.post("/runs/bulk", {**bulk, "dry_run": True}, **who))["matched"] == 3
    first = await door.post("/runs/bulk", {**bulk, "limit": 2}, **acme)
    assert (first["done"], first["failed"]) == (2, [])
    rest = await door.post("/runs/bulk", {**bulk, "cursor": first["next_cursor"]}, **narrow)
    assert (rest["done"], rest["next_cursor"]) == (1, None)
    assert (await door.post("/runs/bulk", {"action": "pause", "all": True}, **own))["done"] == 3
    await waiting(platform, "evil__r-1", "evil__r-2", "evil__r-3")
    assert (await platform.run("acme__r-3"))["status"] == "cancelled"
    again = {"action": "restart", "filter": {"status": ["cancelled"]}}
    assert (await door.post("/runs/bulk", again, **acme))["done"] == 3
    assert len((await door.get("/runs?status=pending&status=running&status=waiting", **acme))["runs"]) == 3
    for wrong in ({"action": "cancel"}, {"action": "cancel", "filter": {"who": 1}}, {"action": "resume", "all": True}):
        problem(await door.http.post("/runs/bulk", json=wrong, **acme), "invalid_request", 400)
    problem(
        await door.http.post("/runs/bulk", json={"action": "cancel", "all": True}, **narrow), "invalid_request", 400
    )


async def test_a_run_is_paused_terminated_restarted_and_seen_with_its_family(both: tuple[InProcess, Web]):
    platform, door = both
    acme = await key(door, tenant="acme")
    parent = await door.post("/agents/clerk/run", {"task": "parent"}, headers={**acme["headers"], "Prefer": "wait=20"})
    again = await door.post(f"/runs/{parent['run_id']}/restart", **acme)
    assert again["run_id"].startswith("acme__")
    tree = await door.get(f"/runs/{parent['run_id']}/tree", **acme)
    assert tree["root"] == parent["run_id"]
    related = {(run["relation"], run["above"]) for run in tree["runs"]}
    assert {("root", None), ("child", parent["run_id"]), ("restart", parent["run_id"])} <= related
    await door.post("/agents/clerk/run", {"task": "wait", "run_id": "r-1"}, **acme)
    await waiting(platform, "acme__r-1")
    assert (await door.post("/runs/r-1/pause", **acme))["status"] == "paused"
    assert (await door.post("/runs/r-1/terminate", {"reason": "enough"}, **acme))["status"] == "cancelled"
    assert (await door.get("/runs/r-1", **acme))["error"]["message"] == "enough"
    found = await door.get("/runs?workflow=run&created_after=2020-01-01T00:00:00Z&status=cancelled", **acme)
    assert [run["run_id"] for run in found["runs"]] == ["acme__r-1"]
    assert (await door.get("/runs?created_before=2020-01-01T00:00:00Z", **acme))["runs"] == []
    problem(await door.http.get("/runs?created_before=yesterday", **acme), "invalid_request", 400)


async def test_schedules_belong_to_tenants_and_so_do_their_runs(both: tuple[InProcess, Web]):
    _, door = both
    acme, evil, own = await key(door, tenant="acme"), await key(door, tenant="evil"), await key(door)
    said = {"agent": "clerk", "cron": "0 6 * * *", "task": {"n": 1}}
    names = {"acme": "acme__nightly", "evil": "evil__nightly", "own": "nightly"}
    for tenant, who in (("acme", acme), ("evil", evil), ("own", own)):
        made = (await door.http.put("/schedules/nightly", json=said, **who)).json()
        assert (made["name"], made["paused"]) == (names[tenant], False)
        assert [each["name"] for each in (await door.get("/schedules?limit=2", **who))["schedules"]] in (
            [names[tenant]],
            [],  # the page has others'
        )
        assert (await door.get("/schedules/nightly", **who))["cron"] == "0 6 * * *"
    assert (await door.post("/schedules/nightly/pause", **acme))["paused"] is True
    assert (await door.get("/schedules/nightly", **evil))["paused"] is False
    assert (await door.post("/schedules/nightly/resume", **acme))["paused"] is False
    time = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T23:00:00Z"}
    made = await door.post("/schedules/nightly/backfill", time, **acme)
    assert made["moments"] == 2
    assert all(run_id.startswith("acme__s-") for run_id in made["run_ids"])
    assert {run["run_id"] for run in (await door.get("/runs", **acme))["runs"]} == set(made["run_ids"])
    assert (await door.http.delete("/schedules/nightly", **acme)).status_code == 200
    problem(await door.http.get("/schedules/nightly", **acme), "not_found", 404)
    problem(await door.http.get("/schedules/acme__nightly", **own), "not_found", 404)
    assert [each["name"] for each in (await door.get("/schedules", **own))["schedules"]] == ["nightly"]
    wrong = {**said, "cron": "at noon"}
    problem(await door.http.put("/schedules/nightly", json=wrong, **acme), "invalid_request", 400)
    problem(await door.http.put("/schedules/acme__x", json=said, **own), "invalid_request", 400)


async def test_schedules_that_code_declares_are_the_platforms_and_are_paused_and_not_set(both: tuple[InProcess, Web]):
    _, door = both
    acme, own = await key(door, tenant="acme"), await key(door)
    await door.gateway.pool.execute(
        "INSERT INTO schedules (name, agent_name, cron, next_at, declared) "
        "VALUES ('cron.clerk.run', 'clerk', '@daily', now() + interval '1 day', TRUE)"
    )
    declared = "INSERT INTO schedule_declarations (agent_name, digest, crons, holds) VALUES ('clerk', 'd', '[]', TRUE)"
    await door.gateway.pool.execute(declared)
    assert [each["declared"] for each in (await door.get("/schedules", **own))["schedules"]] == [True]
    assert (await door.get("/schedules", **acme))["schedules"] == []
    problem(await door.http.get("/schedules/cron.clerk.run", **acme), "not_found", 404)
    assert (await door.post("/schedules/cron.clerk.run/pause", **own))["paused"] is True
    said = {"agent": "clerk", "cron": "0 6 * * *"}
    for name in ("cron.clerk.run", "cron.clerk.other"):
        for who in (own, acme):
            reply = await door.http.put(f"/schedules/{name}", json=said, **who)
            assert reply.status_code in (400, 404), reply.text
    problem(await door.http.delete("/schedules/cron.clerk.run", **own), "conflict", 409)
    assert (await door.get("/schedules/cron.clerk.run", **own))["cron"] == "@daily"


async def test_queues_are_the_platforms(both: tuple[InProcess, Web]):
    _, door = both
    own, acme, narrow = await key(door), await key(door, tenant="acme"), await key(door, agents=["clerk"])
    await door.post("/agents/nobody/run", {"task": 1, "queue": "slow"}, **own)
    assert [each["queue"] for each in (await door.get("/queues", **own))["queues"]] == ["slow"]
    assert (await door.get("/queues/slow", **own))["queues"][0]["pending"] == 1
    await door.post("/agents/clerk/run", {"task": {}, "queue": "a-second", "delay": 3600}, **own)
    page = await door.get("/queues?limit=1", **own)
    assert ([each["queue"] for each in page["queues"]], page["next_cursor"]) == (["a-second"], "a-second")
    page = await door.get("/queues?limit=1&cursor=a-second", **own)
    assert ([each["queue"] for each in page["queues"]], page["next_cursor"]) == (["slow"], None)
    problem(await door.http.get("/queues/other", **own), "not_found", 404)
    problem(await door.http.get("/queues", **acme), "forbidden", 403)
    problem(await door.http.get("/queues", **narrow), "forbidden", 403)
