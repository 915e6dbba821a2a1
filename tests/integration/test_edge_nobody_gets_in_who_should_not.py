from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx2
import orjson
import pytest

from perdure.agent.base import BaseAgent
from perdure.edge import keys
from perdure.edge.guard import PUBLIC
from perdure.edge.keys import pepper
from perdure.engine import Context, workflow
from perdure.errors import InvalidRequest
from tests.edge_support import Web, events, problem, web
from tests.platform import in_process
from tests.support import eventually

BODIES: dict[str, Any] = {
    "/agents/{name}/run": {"task": {}},
    "/runs/{run_id}/fork": {"step": "1"},
    "/runs/{run_id}/approvals/{call_id}": {"arguments_hash": "x", "decision": "approve"},
    "/chat": {"agent": "clerk", "prompt": "hello"},
    "/reset_session": {"session_id": "acme__talk", "agent": "clerk"},
    "/v1/chat/completions": {"model": "clerk", "messages": [{"role": "user", "content": "hello"}]},
    "/v1/responses": {"model": "clerk", "input": "hello"},
    "/agents/{name}/ag-ui": {"threadId": "talk", "messages": [{"role": "user", "content": "hello"}]},
    "/runs/bulk": {"action": "cancel", "filter": {"agent": "clerk"}},
    "/schedules/{name}": {"agent": "clerk", "cron": "0 6 * * *"},
    "/schedules/{name}/backfill": {"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
    "/a2a/{agent}": {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"id": "acme__r-1"}},
    "/a2a": {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"id": "acme__r-1"}},
    "/config/{agent}": {"configurations": {"a": "1"}},
    "/config/{agent}/rollback": {"revision": 0},
}
SECRET = "secret://env/PERDURE_CALLBACK_SECRET_X"
NEEDS = {"GET": "viewer", "DELETE": "operator", "POST": "operator", "PATCH": "admin", "PUT": "admin"}
NEEDS_MORE = {
    ("PUT", "/schedules/{name}"): "operator",
    "/mcp": "viewer",
    "/config/{agent}/rollback": "admin",
    "/tickets": "viewer",
    "/a2a/{agent}": "viewer",
    "/a2a": "viewer",
}
CARD = "/.well-known/agent-card.json"


class Clerk(BaseAgent):
    name = "clerk"

    @workflow
    async def run(self, ctx: Context, task: Any) -> str:
        await ctx.wait_signal("go")
        return "done"


class Other(Clerk):
    name = "other"


@pytest.fixture
async def door(settings, nc):
    async with in_process(settings, nc, Clerk, Other) as platform, web(settings, platform) as made:
        yield made


async def key(door: Web, **said: Any) -> dict[str, str]:
    """The header of a new key."""
    under = await asyncio.to_thread(pepper, door.gateway.settings)
    made = await keys.create(door.gateway.pool, under, **{"name": "test", "role": "admin", **said})
    return {"Authorization": f"Bearer {made.key}"}


async def routes(door: Web, admin: dict[str, str]) -> list[tuple[str, str]]:
    """Every method and path of the app, its own pages too."""
    document = await door.get("/openapi.json", headers=admin)
    listed = [(method.upper(), path) for path, each in document["paths"].items() for method in each]
    assert len(listed) > 20
    undocumented = [("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nothing"), ("POST", "/mcp"), ("GET", "/mcp")]
    undocumented += [("DELETE", "/mcp")]
    assert {("POST", "/a2a/{agent}"), ("POST", "/a2a"), ("GET", CARD), ("POST", "/agents/{name}/ag-ui")} <= set(listed)
    return [*listed, *undocumented]


async def call(
    door: Web, method: str, path: str, headers: dict[str, str] | None = None, **names: str
) -> httpx2.Response:
    """A request that would be taken, but for who makes it."""
    names = {
        "name": "clerk",
        "agent": "clerk",
        "run_id": "acme__r-1",
        "session_id": "acme__talk",
        "call_id": "c",
        "queue": "q",
        "model": "clerk",
    } | names
    names = {"response_id": f"resp_{names['run_id']}", **names}
    if path.startswith("/schedules/"):
        names["name"] = "acme__nightly"
    filled = re.sub(r"{(\w+)}", lambda found: names[found[1]], path).replace("signal/clerk", "signal/go")
    body = BODIES.get(path) if method in ("POST", "PUT", "PATCH") else None
    async with door.http.stream(method, filled, json=body, headers=headers) as response:
        if not response.headers["content-type"].startswith("text/event-stream"):
            await response.aread()
        return response


async def test_no_route_lets_in_who_has_no_key_or_one_that_does_not_count(door: Web):
    admin = await key(door)
    expired, revoked = await key(door, lifetime=0.001), await key(door)
    await keys.revoke(door.gateway.pool, revoked["Authorization"].removeprefix("Bearer "))
    good = admin["Authorization"]
    bad = {
        "none": {},
        "empty": {"Authorization": "Bearer"},
        "nonsense": {"Authorization": "Bearer nonsense"},
        "another scheme": {"Authorization": good.replace("Bearer", "Basic")},
        "unknown": {"Authorization": f"Bearer perdure_{'a' * 12}_{'a' * 43}"},
        "wrong secret": {"Authorization": good[:-1] + ("A" if good[-1] != "A" else "B")},
        "id alone": {"Authorization": good[: good.rindex("_") + 1]},
        "expired": expired,
        "revoked": revoked,
    }
    for method, path in await routes(door, admin):
        answers = await asyncio.gather(*(call(door, method, path, headers) for headers in bad.values()))
        for why, response in zip(bad, answers, strict=True):
            if path in PUBLIC:
                assert response.status_code == 200
            else:
                assert response.status_code == 401, (method, path, why)
                assert response.headers["www-authenticate"] == "Bearer"
        in_query = await call(door, method, f"{path}?api_key={good}&ticket={good}", {})
        assert path in PUBLIC or in_query.status_code == 401, (method, path)


async def test_each_route_needs_the_role_that_it_says(door: Web):
    admin, operator, viewer = [await key(door, role=role) for role in ("admin", "operator", "viewer")]
    await door.post("/agents/clerk/run", {"task": {}, "run_id": "r-1"}, headers=operator)
    for method, path in await routes(door, admin):
        if path in PUBLIC:
            continue
        needed = NEEDS_MORE.get((method, path)) or NEEDS_MORE.get(path, NEEDS[method])
        for role, headers in (("viewer", viewer), ("operator", operator)):
            if (needed, role) in (("operator", "viewer"), ("admin", "viewer"), ("admin", "operator")):
                response = await call(door, method, path, headers, run_id="r-1")
                assert response.status_code == 403
                assert f"this needs the role {needed}" in response.text
            elif method == "GET" and path != "/mcp":
                assert (await call(door, method, path, headers, run_id="r-1")).status_code in (200, 404)


async def test_a_tenant_sees_nothing_of_another_on_any_route(door: Web):
    acme, evil = await key(door, tenant="acme"), await key(door, tenant="evil")
    platform = await key(door)
    await door.post("/agents/clerk/run", {"task": {}, "run_id": "r-1", "session_id": "talk"}, headers=acme)
    await door.post("/agents/clerk/run", {"task": {}, "run_id": "p-1"}, headers=platform)
    assert (await door.http.put("/schedules/nightly", json=BODIES["/schedules/{name}"], headers=acme)).is_success
    assert (await door.get("/runs/r-1", headers=acme))["run_id"] == "acme__r-1"
    assert (await door.get("/runs/acme__r-1", headers=acme))["session_id"] == "acme__talk"
    whole = {
        "/queues",
        "/queues/{queue}",
        "/config/{agent}",
        "/config/{agent}/history",
        "/config/{agent}/rollback",
        "/metrics",
    }
    shared = {"/agents", "/tickets", "/runs", "/approvals", "/docs", "/openapi.json", "/agents/{name}/run", "/chat"}
    shared |= {
        "/v1/models",
        "/v1/models/{model}",
        "/v1/chat/completions",
        "/v1/responses",
        "/mcp",
        CARD,
        f"/a2a/{{agent}}{CARD}",
        "/schedules",
        "/runs/bulk",
        "/agents/{name}/ag-ui",
    }
    for headers in (evil, platform):
        for method, path in await routes(door, platform):
            if path in PUBLIC or path in shared or (path in whole and headers is platform):
                continue
            if (method, path) == ("PUT", "/schedules/{name}"):
                continue  # a schedule of its own of that name
            for names in ({}, {"run_id": "evil__acme__r-1"}, {"run_id": "r-1", "session_id": "talk"}):
                if path == "/events/{session_id}" and (headers is evil or names):
                    continue  # a conversation of its own of that name: it may begin
                response = await call(door, method, path, headers, **names)
                if path in ("/a2a", "/a2a/{agent}"):  # its answers are those of JSON-RPC
                    assert "not_found" in response.json()["error"]["message"]
                    continue
                assert response.status_code == (403 if path in whole else 404), (method, path, response.text)
                assert "talk" not in response.text or "session_id" not in response.text
        listed = await door.get("/runs", headers=headers)
        assert "acme" not in orjson.dumps(listed).decode()
    assert [run["run_id"] for run in (await door.get("/runs", headers=acme))["runs"]] == ["acme__r-1"]
    assert (await door.get("/runs", headers=evil))["runs"] == []
    assert [run["run_id"] for run in (await door.get("/runs", headers=platform))["runs"]] == ["p-1"]
    assert (await door.get("/runs/r-1", headers=acme))["status"] in ("pending", "running", "waiting")


async def test_tenants_with_the_same_names_and_keys_have_runs_and_conversations_of_their_own(door: Web):
    one, two, platform = await key(door, tenant="one"), await key(door, tenant="two"), await key(door)
    same = {"task": {}, "session_id": "talk"}
    for headers in (one, two, platform):
        for _ in range(2):
            await door.post("/agents/clerk/run", same, headers={**headers, "Idempotency-Key": "7"})
    rows = await door.gateway.pool.fetch("SELECT run_id, session_id FROM runs ORDER BY turn")
    assert len({row["run_id"] for row in rows}) == 3
    assert [row["session_id"] for row in rows] == ["one__talk", "two__talk", "talk"]
    stolen = {"task": {}, "session_id": "one__talk"}
    problem(await door.http.post("/agents/clerk/run", json=stolen, headers=platform), "invalid_request", 400)
    problem(
        await door.http.post("/agents/clerk/run", json={"task": 1, "run_id": "one__x"}, headers=platform),
        "invalid_request",
        400,
    )
    await door.post("/agents/clerk/run", stolen, headers=two)
    last = await door.gateway.pool.fetchval("SELECT session_id FROM runs ORDER BY turn DESC LIMIT 1")
    assert last == "two__one__talk"
    for callback in ({"subject": "others.news"}, {"url": "https://x.example", "secret": SECRET}):
        problem(
            await door.http.post("/agents/clerk/run", json={"task": 1, "callback": callback}, headers=one),
            "forbidden",
            403,
        )
    one_run = {"task": {}, "dedup_key": "k"}
    made = [(await door.post("/agents/clerk/run", one_run, headers=each))["run_id"] for each in (one, one, two)]
    assert made[0] == made[1] != made[2]
    theirs = {**one_run, "dedup_key": "one__k"}
    problem(await door.http.post("/agents/clerk/run", json=theirs, headers=platform), "invalid_request", 400)
    problem(
        await door.http.post("/agents/clerk/run", json={"task": 1, "run_id": "x" * 125}, headers=one),
        "invalid_request",
        400,
    )


async def test_a_key_of_one_agent_reaches_no_other(door: Web):
    scoped, platform = await key(door, agents=["clerk"]), await key(door)
    await door.post("/agents/other/run", {"task": {}, "run_id": "o-1", "session_id": "talk"}, headers=platform)
    await door.post("/agents/clerk/run", {"task": {}, "run_id": "c-1"}, headers=scoped)
    assert [run["run_id"] for run in (await door.get("/runs", headers=scoped))["runs"]] == ["c-1"]
    assert [agent["name"] for agent in (await door.get("/agents", headers=scoped))["agents"]] == ["clerk"]
    for method, path in await routes(door, platform):
        if "{run_id}" in path or "{response_id}" in path:
            assert (await call(door, method, path, scoped, run_id="o-1")).status_code == 404, path
        if "{agent}" in path or "/agents/{name}" in path or "{model}" in path:
            others = dict.fromkeys(("name", "agent", "model"), "other")
            assert (await call(door, method, path, scoped, **others)).status_code == 403, path
    chat = {"agent": "other", "prompt": "hello"}
    problem(await door.http.post("/chat", json=chat, headers=scoped), "forbidden", 403)
    problem(await door.http.get("/config/*", headers=scoped), "forbidden", 403)
    problem(await door.http.get("/runs?agent=other", headers=scoped), "forbidden", 403)


async def test_with_the_first_key_the_door_is_closed_and_a_revoked_one_does_not_open_it(door: Web):
    assert (await door.http.get("/runs")).status_code == 200
    made = await key(door)
    assert (await door.http.get("/runs")).status_code == 401
    assert (await door.http.get("/runs", headers=made)).status_code == 200
    await keys.revoke(door.gateway.pool, made["Authorization"].removeprefix("Bearer "))
    assert (await door.http.get("/runs", headers=made)).status_code == 401
    assert (await door.http.get("/runs")).status_code == 401


async def test_a_key_is_kept_as_a_hash_under_a_secret_and_its_use_is_noted(door: Web):
    made = await key(door)
    secret = made["Authorization"].rpartition("_")[2]
    row = await door.gateway.pool.fetchrow("SELECT * FROM gateway_keys")
    assert secret not in str(dict(row))
    assert row["hash"] != keys.hash_of(secret, b"another secret")
    assert len(row["hash"]) == 32
    assert row["last_used_at"] is None
    await door.get("/runs", headers=made)

    async def used() -> bool:
        return (await keys.listed(door.gateway.pool))[0]["last_used_at"] is not None

    await eventually(used)
    file = door.gateway.settings.home / keys.PEPPER_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    for wrong in ({"tenant": "A_b"}, {"tenant": "a__b"}, {"name": ""}, {"lifetime": 0}, {"agents": ["a.b"]}):
        with pytest.raises(InvalidRequest):
            await key(door, **wrong)


async def test_a_stream_ends_when_its_key_is_revoked(settings, nc):
    async with in_process(settings, nc, Clerk) as platform, web(settings, platform, gateway_heartbeat=0.05) as door:
        made = await key(door)
        await door.post("/agents/clerk/run", {"task": {}, "run_id": "r-1"}, headers=made)
        async with door.http.stream("GET", "/runs/r-1/events", headers=made) as response:
            lines = response.aiter_lines()
            while not (line := await anext(lines)).startswith("id: "):
                assert line in (": still here", "")  # the beat may come before the run's first event
            assert line.startswith("id: 0")
            await keys.revoke(door.gateway.pool, made["Authorization"].removeprefix("Bearer "))
            async for _ in lines:
                pass  # to its end


async def test_a_ticket_opens_one_stream_once_and_only_streams(door: Web):
    made = await key(door, tenant="acme", role="viewer")
    maker = await key(door, tenant="acme")
    await door.post("/agents/clerk/run", {"task": {}, "run_id": "r-1"}, headers=maker)
    ticket = (await door.post("/tickets", headers=made))["ticket"]
    problem(await door.http.get(f"/runs/r-1?ticket={ticket}"), "unauthorized", 401)
    async for event in events(door.http, f"/runs/r-1/events?ticket={ticket}"):
        assert event.kind == "run.started"
        break
    problem(await door.http.get(f"/runs/r-1/events?ticket={ticket}"), "unauthorized", 401)
    other = (await door.post("/tickets", headers=await key(door, tenant="evil")))["ticket"]
    problem(await door.http.get(f"/runs/acme__r-1/events?ticket={other}"), "not_found", 404)
    slow = await key(door, tenant="acme", rate_limit=1)  # ten at once
    taken = [(await door.post("/tickets", headers=slow))["ticket"] for _ in range(10)]
    problem(await door.http.post("/tickets", headers=slow), "rate_limited", 429)
    async for _ in events(door.http, f"/runs/r-1/events?ticket={taken[0]}"):
        break  # what was given is not refused, and lost, when it is used
    late = (await door.post("/tickets", headers=made))["ticket"]
    await keys.revoke(door.gateway.pool, made["Authorization"].removeprefix("Bearer "))
    problem(await door.http.get(f"/runs/r-1/events?ticket={late}"), "unauthorized", 401)


async def test_a_key_has_its_rate_at_all_gateways_together_and_others_are_not_held_up(settings, nc, servers):
    async with in_process(settings, nc) as platform, web(settings, platform) as one, web(settings) as two:
        slow, quick = await key(one, rate_limit=20), await key(one)
        answers = [await (one, two)[n % 2].http.get("/runs", headers=slow) for n in range(14)]
        codes = [response.status_code for response in answers]
        assert codes.count(200) in (10, 11)
        assert int(next(each for each in answers if each.status_code == 429).headers["retry-after"]) >= 1
        assert (await two.http.get("/runs", headers=quick)).status_code == 200
        await servers.redis.stop()
        alone = [(await one.http.get("/runs", headers=slow)).status_code for _ in range(14)]
        assert alone.count(200) in (10, 11)
        await servers.redis.start()


async def test_without_postgres_a_key_is_not_let_in_unchecked(own_postgres_settings, own_servers, nc):
    async with web(own_postgres_settings) as door:
        made = await key(door)
        await own_servers.postgres.stop()
        problem(await door.http.get("/agents", headers=made), "unavailable", 503)
        problem(await door.http.get("/agents"), "unavailable", 503)
        await own_servers.postgres.start()

        async def back() -> bool:
            return (await door.http.get("/agents", headers=made)).status_code == 200

        await eventually(back)


async def test_outside_loopback_nobody_is_let_in_without_a_key(settings, nc):
    async with in_process(settings, nc) as platform, web(settings, platform, gateway_host="0.0.0.0") as door:
        for path in ("/runs", "/docs", "/metrics", "/openapi.json"):
            assert (await door.http.get(path)).status_code == 401
        assert (await door.http.get("/healthz")).status_code == 200
        assert (await door.http.get("/runs", headers=await key(door))).status_code == 200


async def test_only_named_sites_may_call_from_their_pages(settings, nc):
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    async with web(settings) as door:
        assert "access-control-allow-origin" not in (await door.http.options("/runs", headers=asked)).headers
    async with web(settings, gateway_origins="https://app.example") as door:
        answer = await door.http.options("/runs", headers=asked)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        evil = await door.http.options("/runs", headers={**asked, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in evil.headers
