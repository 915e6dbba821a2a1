"""The console: its files, and the way through it to the gateway, which opens nothing that the gateway keeps shut."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from perdure.agent.base import BaseAgent
from perdure.embedded.ports import free_port
from perdure.engine import Context, workflow
from services.console import relay
from services.console.app import PAGE
from services.console.service import Console
from tests.edge_support import Web, all_events, done, events, problem, web
from tests.integration.test_edge_nobody_gets_in_who_should_not import key
from tests.platform import in_process
from tests.support import eventually


class Clerk(BaseAgent):
    name = "clerk"

    @workflow
    async def run(self, ctx: Context, task: Any) -> str:
        await ctx.wait_signal("go")
        return f"done {task}"


@asynccontextmanager
async def console(settings, gateway_url: str, **changed: Any) -> AsyncIterator[tuple[Console, httpx2.AsyncClient]]:
    said = {"instance_id": "console", "console_port": 0, "gateway_url": gateway_url, **changed}
    made = Console(settings.model_copy(update=said))
    await made.start()
    try:
        async with httpx2.AsyncClient(base_url=made.server.url, timeout=30, trust_env=False) as http:
            yield made, http
    finally:
        await made.stop()


@asynccontextmanager
async def both(settings, nc, **changed: Any) -> AsyncIterator[tuple[Web, httpx2.AsyncClient]]:
    async with (
        in_process(settings, nc, Clerk) as platform,
        web(settings, platform) as door,
        console(settings, door.gateway.server.url, **changed) as (_, http),
    ):
        yield door, http


async def test_every_file_that_the_page_names_is_there_and_nothing_of_another_site_is_loaded(settings):
    async with console(settings, "http://127.0.0.1:9") as (_, http):
        page = await http.get("/")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        wanted = set(re.findall(r'(?:src|href)="(/page/[^"]+)"', page.text))
        assert wanted
        for script in PAGE.glob("*.js"):
            wanted |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
        for each in wanted:
            assert (await http.get(each)).status_code == 200, each
        for file in PAGE.iterdir():
            assert not re.search(r"https?://|innerHTML|eval\(|style=", file.read_text()), file
        assert (await http.get("/page/../service.py")).status_code == 404
        assert (await http.get("/page/%2e%2e/service.py")).status_code == 404


async def test_runs_are_started_followed_and_steered_through_it(settings, nc):
    async with both(settings, nc) as (door, http):
        run_id = done(await http.post("/api/agents/clerk/run", json={"task": "a/b"}))["run_id"]
        follow = events(http, f"/api/runs/{run_id}/events")
        assert (await anext(follow)).kind == "run.started"
        await eventually(lambda: waits(http, run_id))
        done(await http.post(f"/api/runs/{run_id}/signal/go", json={"by": "ada"}))
        assert [each.kind async for each in follow][-1] == "run.completed"
        assert done(await http.get(f"/api/runs/{run_id}"))["output"] == "done a/b"
        seen = await all_events(http, f"/api/runs/{run_id}/events")
        assert seen == await all_events(door.http, f"/runs/{run_id}/events")
        assert await all_events(http, f"/api/runs/{run_id}/events", last=seen[-1].id) == []
        assert done(await http.get("/api/runs?limit=1&agent=clerk")) == await door.get("/runs?limit=1&agent=clerk")
        problem(await http.get("/api/runs?limit=many"), "invalid_request", 400)
        problem(await http.get("/api/runs/none"), "not_found", 404)


async def waits(http: httpx2.AsyncClient, run_id: str) -> bool:
    return bool(done(await http.get(f"/api/runs/{run_id}"))["status"] == "waiting")


async def test_a_key_is_passed_on_and_nobody_gets_in_without_one(settings, nc):
    async with both(settings, nc) as (door, http):
        header = await key(door, role="viewer")
        problem(await http.get("/api/agents"), "unauthorized", 401)
        assert done(await http.get("/api/agents", headers=header))["agents"][0]["name"] == "clerk"
        problem(await http.post("/api/agents/clerk/run", json={"task": 1}, headers=header), "forbidden", 403)


@pytest.mark.parametrize("header", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
async def test_what_another_site_makes_a_browser_send_is_refused(settings, nc, header):
    async with both(settings, nc) as (door, http):
        answer = await http.post("/api/agents/clerk/run", json={"task": 1}, headers=header)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert (await door.get("/runs"))["runs"] == []


async def test_who_reaches_it_from_elsewhere_needs_a_key_even_where_the_gateway_is_open(settings, nc):
    async with both(settings, nc, console_host="0.0.0.0") as (door, http):
        assert (await door.get("/agents"))["agents"]
        problem(await http.get("/api/agents"), "forbidden", 403)
        problem(await http.get("/api/agents", headers={"Authorization": "Bearer made-up"}), "forbidden", 403)
        header = await key(door)
        assert done(await http.get("/api/agents", headers=header))["agents"]


async def test_a_gateway_that_is_away_and_a_body_too_large_are_said(settings, monkeypatch):
    monkeypatch.setattr(relay, "_LARGEST", 1000)
    async with console(settings, f"http://127.0.0.1:{free_port()}") as (_, http):
        away = await http.get("/api/agents")
        assert (away.status_code, away.json()["code"]) == (503, "unavailable")
        assert "does not answer" in away.json()["detail"]
        large = await http.post("/api/chat", content=b"x" * 1001)
        assert (large.status_code, large.json()["code"]) == (413, "too_large")


async def test_streams_end_when_the_console_stops(settings, nc):
    async with (
        in_process(settings, nc, Clerk) as platform,
        web(settings, platform) as door,
        console(settings, door.gateway.server.url) as (made, http),
    ):
        run_id = done(await http.post("/api/agents/clerk/run", json={"task": 1}))["run_id"]
        async with http.stream("GET", f"/api/runs/{run_id}/events") as response:
            lines = response.aiter_lines()
            assert await anext(lines)
            await made.stop()
            async for _ in lines:  # to its end: a stream that stayed would run into the reader's patience
                pass
        assert (await door.get(f"/runs/{run_id}"))["status"] in ("running", "waiting")
