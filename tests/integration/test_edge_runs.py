from __future__ import annotations

import asyncio

import httpx2
import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, workflow
from tests.edge_support import Web, problem, web
from tests.platform import in_process
from tests.support import eventually


class Clerk(BaseAgent):
    name = "clerk"

    @workflow
    async def run(self, ctx: Context, task: dict) -> dict:
        doubled = await ctx.step("double", self.double, task["n"])
        if task.get("wait"):
            return {"go": await ctx.wait_signal("go"), "doubled": doubled}
        return {"doubled": doubled}

    @workflow
    async def breaks(self, ctx: Context, task: dict) -> None:
        await ctx.step("break", self.broken, retry=Retry(max_attempts=1))

    async def double(self, n: int) -> int:
        return n * 2

    async def broken(self) -> None:
        raise ValueError("no such luck")


@pytest.fixture
async def door(settings, nc):
    async with in_process(settings, nc, Clerk) as platform, web(settings, platform) as made:
        yield made


async def status_of(door: Web, run_id: str) -> str:
    return (await door.get(f"/runs/{run_id}"))["status"]


async def test_a_run_is_started_looked_at_and_listed(door: Web):
    started = await door.post("/agents/clerk/run", {"task": {"n": 21}})
    run_id = started["run_id"]
    assert started == {"instance_id": run_id, "run_id": run_id, "status_url": f"/runs/{run_id}"}

    async def ended() -> bool:
        return (await door.get(started["status_url"]))["status"] == "completed"

    await eventually(ended)
    run = await door.get(started["status_url"])
    assert run["output"] == {"doubled": 42}
    assert [step["name"] for step in run["steps"]] == ["double"]
    assert "steps" not in await door.get(f"/runs/{run_id}?steps=false")
    assert [run["run_id"] for run in (await door.get("/runs?agent=clerk&status=completed"))["runs"]] == [run_id]
    assert (await door.get("/runs?status=failed"))["runs"] == []


async def test_a_start_that_prefers_to_wait_has_the_outcome(door: Web):
    response = await door.http.post("/agents/Clerk/run", json={"task": {"n": 2}}, headers={"Prefer": "wait=10"})
    assert response.headers["preference-applied"] == "wait=10"
    assert (response.json()["status"], response.json()["output"]) == ("completed", {"doubled": 4})
    waiting = {"task": {"n": 2, "wait": True}}
    said = await door.post("/agents/clerk/run", waiting, headers={"Prefer": "respond-async, wait=0"})
    assert said["status"] in ("pending", "running", "waiting")
    assert "output" not in said
    failed = await door.post("/agents/clerk/run", {"task": {}, "workflow": "breaks"}, headers={"Prefer": "wait=10"})
    assert failed["status"] == "failed"
    assert "no such luck" in failed["error"]["message"]


async def test_the_same_idempotency_key_is_the_same_run_and_another_task_a_conflict(door: Web):
    async def start(task: dict, key: str = "order 7") -> httpx2.Response:
        return await door.http.post("/agents/clerk/run", json={"task": task}, headers={"Idempotency-Key": key})

    replies = await asyncio.gather(*(start({"n": 1}) for _ in range(20)))
    assert len({reply.json()["run_id"] for reply in replies}) == 1
    problem(await start({"n": 2}), "conflict", 409)
    assert (await start({"n": 2}, "order 8")).json()["run_id"] != replies[0].json()["run_id"]
    both = await door.http.post(
        "/agents/clerk/run", json={"task": 1, "run_id": "mine"}, headers={"Idempotency-Key": "x"}
    )
    assert "run_id" in problem(both, "invalid_request", 400)["detail"]


async def test_lists_are_read_page_by_page(door: Web):
    for number in range(5):
        await door.post("/agents/clerk/run", {"task": {"n": number}, "run_id": f"r-{number}"})
    seen, cursor = [], ""
    while cursor is not None:
        page = await door.get(f"/runs?limit=2{cursor and '&cursor=' + cursor}")
        seen += [run["run_id"] for run in page["runs"]]
        cursor = page["next_cursor"]
    assert seen == [f"r-{number}" for number in reversed(range(5))]
    problem(await door.http.get("/runs?cursor=nonsense"), "invalid_request", 400)


async def test_a_run_is_signalled_cancelled_resumed_and_forked(door: Web):
    await door.post("/agents/clerk/run", {"task": {"n": 1, "wait": True}, "run_id": "w-1"})
    once = {"Idempotency-Key": "once"}
    assert [(await door.post("/runs/w-1/signal/odd", 1, headers=once))["sent"] for _ in range(2)] == [True, False]
    assert (await door.post("/runs/w-1/signal/go", {"by": "me"}))["run_id"] == "w-1"

    async def ended() -> bool:
        return await status_of(door, "w-1") == "completed"

    await eventually(ended)
    assert (await door.get("/runs/w-1"))["output"]["go"] == {"by": "me"}
    forked = await door.post("/runs/w-1/fork", {"step": "double"})
    assert forked["forked_from"] == "w-1"
    cancelled = await door.post(f"/runs/{forked['run_id']}/cancel", {"reason": "enough"})
    assert cancelled["run_id"] == forked["run_id"]

    async def gone() -> bool:
        return await status_of(door, forked["run_id"]) == "cancelled"

    await eventually(gone)
    problem(await door.http.post("/runs/w-1/resume"), "conflict", 409)
    problem(await door.http.post("/runs/w-1/signal/go", json=1), "conflict", 409)
    problem(await door.http.post("/runs/w-1/signal/approval:x", json={"status": "approved"}), "invalid_request", 400)
    problem(await door.http.post("/runs/w-1/fork", json={"step": "nope"}), "not_found", 404)
    await door.post("/agents/clerk/run", {"task": {}, "workflow": "breaks", "run_id": "b-1"})

    async def failed() -> bool:
        return await status_of(door, "b-1") == "failed"

    await eventually(failed)
    assert (await door.post("/runs/b-1/resume"))["run_id"] == "b-1"


WRONG = [
    ("GET", "/nothing", None, ("not_found", 404), "/nothing"),
    ("DELETE", "/runs", None, ("invalid_request", 405), "DELETE"),
    ("GET", "/runs/nope", None, ("not_found", 404), "nope"),
    ("GET", "/runs/nope/events", None, ("not_found", 404), "nope"),
    ("GET", "/runs/no.pe", None, ("invalid_request", 400), "run_id"),
    ("GET", "/runs?limit=0", None, ("invalid_request", 400), "limit"),
    ("GET", "/runs?status=done", None, ("invalid_request", 400), "status"),
    ("POST", "/agents/clerk/run", b"", ("invalid_request", 400), "body"),
    ("POST", "/agents/clerk/run", b"{", ("invalid_request", 400), "JSON"),
    ("POST", "/agents/clerk/run", b"[]", ("invalid_request", 400), "object"),
    ("POST", "/agents/clerk/run", b"{}", ("invalid_request", 400), "'task' is missing"),
    ("POST", "/agents/clerk/run", b'{"task":"\\u0000"}', ("invalid_request", 400), "U+0000"),
    ("POST", "/agents/clerk/run", b'{"task":1,"run_id":"a b"}', ("invalid_request", 400), "run_id"),
    ("POST", "/agents/cl.erk/run", b'{"task":1}', ("invalid_request", 400), "agent name"),
    ("POST", "/runs/nope/cancel", None, ("not_found", 404), "nope"),
    ("POST", "/runs/nope/approvals/c", b'{"arguments_hash":"x","decision":"yes"}', ("invalid_request", 400), "de"),
    ("GET", "/approvals?status=odd", None, ("invalid_request", 400), "status"),
    ("GET", "/history/nope", None, ("not_found", 404), "nope"),
    ("POST", "/chat", b'{"agent":"clerk"}', ("invalid_request", 400), "'prompt' is missing"),
    ("GET", "/runs/nope/events?after=x", None, ("invalid_request", 400), "'x'"),
    ("GET", "/config/a.b", None, ("invalid_request", 400), "agent name"),
]


async def test_what_is_wrong_is_a_problem_that_names_it(door: Web):
    for method, path, body, code, says in WRONG:
        headers = {"content-type": "application/json"} if body is not None else {}
        response = await door.http.request(method, path, content=body, headers=headers)
        assert says in problem(response, *code)["detail"]


async def test_a_body_over_the_limit_is_refused_by_its_length_and_by_its_bytes(settings, nc):
    large = b'{"task":"' + b"x" * 1_100_000 + b'"}'

    async def pieces():
        for at in range(0, len(large), 65_536):
            yield large[at : at + 65_536]

    said = {"content-type": "application/json"}
    async with web(settings, max_payload=1_000_000) as door:
        for content in (large, pieces()):
            response = await door.http.post("/agents/clerk/run", content=content, headers=said)
            assert "PERDURE_MAX_PAYLOAD" in problem(response, "too_large", 413)["detail"]
    async with web(settings, gateway_max_bytes=1_000_000) as door:
        problem(await door.http.post("/agents/clerk/run", content=large, headers=said), "rate_limited", 429)
        assert door.gateway.door.load.bytes == 0


async def test_past_the_bound_on_requests_one_is_refused_and_the_others_are_answered(settings, nc):
    async with in_process(settings, nc, Clerk) as platform, web(settings, platform, gateway_max_requests=4) as door:
        long = {"task": {"n": 1, "wait": True}}
        waiting = [
            asyncio.create_task(
                door.http.post("/agents/clerk/run", json={**long, "run_id": f"l-{n}"}, headers={"Prefer": "wait=60"})
            )
            for n in range(4)
        ]
        await eventually(lambda: door.gateway.door.load.requests == 4)
        refused = await door.http.get("/runs")
        assert problem(refused, "rate_limited", 429)["retry_after"] == 1.0
        assert refused.headers["retry-after"] == "1"
        assert (await door.http.get("/healthz")).status_code == 200
        for n in range(4):
            await nc.request("run.signal", f'{{"run_id":"l-{n}","name":"go","payload":1}}'.encode(), timeout=5)
        assert {(await each).json()["status"] for each in waiting} == {"completed"}
        assert (await door.http.get("/runs")).status_code == 200
        assert "perdure_http_shed_total 1" in (await door.http.get("/metrics")).text


async def test_a_page_of_another_site_changes_nothing_and_a_strange_host_is_not_answered(door: Web):
    post = {"json": {"task": {"n": 1}}}
    other = await door.http.post("/agents/clerk/run", headers={"Origin": "https://evil.example"}, **post)
    problem(other, "forbidden", 403)
    for strange in ("evil.example", "[", "localhost.evil.example", "127.0.0.1@evil.example"):
        problem(await door.http.get("/runs", headers={"Host": strange}), "forbidden", 403)
    for strange in ("http://[", "null", f"{door.gateway.server.url}.evil.example"):
        problem(await door.http.post("/agents/clerk/run", headers={"Origin": strange}, **post), "forbidden", 403)
    plain = await door.http.post(
        "/agents/clerk/run", content=b'{"task":{"n":1}}', headers={"content-type": "text/plain"}
    )
    problem(plain, "invalid_request", 400)
    own = await door.http.post("/agents/clerk/run", headers={"Origin": door.gateway.server.url}, **post)
    assert own.status_code == 200
    assert len((await door.get("/runs"))["runs"]) == 1


STARTS = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b"[" * 5000,
    b"{}",
    b'{"task": NaN, "run_id": "r-2"}',
    b'{"task": "\\ud800"}',
    b'{"task": 123456789012345678901234567890}',
    b'{"task": 1, "run_id": "a b"}',
    b'{"task": 1, "session_id": 7}',
    b'{"task": 1, "delay": 1, "start_at": "2030-01-01T00:00:00Z"}',
    b'{"task": 1, "callback": "no url"}',
    b'{"task": 1, "workflow": "", "queue": "A"}',
    b'{"task": {"n": 1}, "run_id": "r-1", "session_id": "s", "workflow": "run", "more": 1}',
)


async def test_a_start_that_says_what_most_say_is_answered_as_any_other(door: Web):
    for body in STARTS:
        said = []
        for kind in ("application/json", "application/json; charset=utf-8"):
            answer = await door.http.post("/agents/clerk/run", content=body, headers={"Content-Type": kind})
            told = answer.json()
            told.pop("request_id", None)
            said.append((answer.status_code, answer.headers["content-type"], told))
        assert said[0] == said[1]
        assert said[0][0] in (200, 400)


async def test_health_agents_metrics_and_the_document_are_there(door: Web):
    assert await door.get("/healthz") == {"status": "ok"}
    for path in ("/healthz", "/readyz"):
        assert (await door.http.head(path)).status_code == 200  # what some balancers ask with
    assert (await door.get("/readyz"))["status"] == "ok"
    assert [agent["name"] for agent in (await door.get("/agents"))["agents"]] == ["clerk"]
    await door.http.get("/runs/nope")
    text = (await door.http.get("/metrics")).text
    assert 'perdure_http_responses_total{method="GET",route="/runs/{run_id}",status="404"} 1' in text
    document = await door.get("/openapi.json")
    docs = await door.http.get("/docs")
    assert all(f"<code>{path}</code>" in docs.text for path in document["paths"])
    assert all(f'<details id="{name}">' in docs.text for name in document["components"]["schemas"])
    assert "default-src 'none'" in docs.headers["content-security-policy"]  # it needs nothing from elsewhere
    assert "src=" not in docs.text
    assert "http://" not in docs.text
    assert {"/agents/{name}/run", "/runs/{run_id}/events", "/chat", "/config/{agent}"} <= set(document["paths"])
    assert "Problem" in document["components"]["schemas"]
    given = await door.http.get("/runs/nope", headers={"X-Request-Id": "mine-1"})
    assert given.json()["request_id"] == "mine-1"


async def test_readiness_is_lost_with_the_servers_and_nothing_of_them_is_told(settings, nc, servers):
    async with web(settings) as door:
        await servers.nats.stop()
        response = await door.http.get("/readyz")
        assert response.status_code == 503
        assert response.json()["checks"]["nats"] == {"status": "critical"}
        problem(await door.http.get("/runs"), "unavailable", 503)
        assert (await door.http.get("/healthz")).status_code == 200
        await servers.nats.start()


async def test_configuration_is_read_changed_replaced_and_set_back(door: Web):
    empty = await door.get("/config/clerk")
    first = (await door.http.patch("/config/clerk", json={"configurations": {"a": "1", "b": [2]}})).json()
    assert first["configurations"] == {"a": "1", "b": "[2]"}
    assert first["revision"] > empty["revision"]
    stale = {"configurations": {"a": "2"}, "expected_revision": empty["revision"]}
    problem(await door.http.patch("/config/clerk", json=stale), "conflict", 409)
    replaced = (await door.http.put("/config/clerk", json={"configurations": {"c": "3"}})).json()
    assert replaced["configurations"] == {"c": "3"}
    changed = (await door.get("/config/clerk/history?limit=1"))["history"][0]
    assert changed["changed_by"] == "local"
    back = await door.post("/config/clerk/rollback", {"revision": first["revision"]})
    assert back["configurations"] == {"a": "1", "b": "[2]"}
    everywhere = (await door.http.patch("/config/*", json={"configurations": {"z": "9"}})).json()
    assert everywhere["configurations"] == {"z": "9"}
    assert (await door.get("/config/clerk"))["configurations"] == {"a": "1", "b": "[2]", "z": "9"}
    assert (await door.http.put("/config/clerk", json={"configurations": {}})).json()["configurations"] == {"z": "9"}
