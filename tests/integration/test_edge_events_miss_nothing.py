from __future__ import annotations

import asyncio
import random

import httpx2
import orjson

from perdure.agent.base import BaseAgent
from perdure.edge import sse
from perdure.embedded.ports import free_port
from perdure.engine import Context, StepContext, workflow
from tests.edge_support import Event, all_events, events, relay, web
from tests.platform import in_process
from tests.processes import processes
from tests.support import eventually, temporary_folder

STEPS = 40


class Counter(BaseAgent):
    name = "counter"

    @workflow
    async def run(self, ctx: Context, task: dict) -> int:
        for number in range(task["upto"]):
            await ctx.step("count", self.count, number)
            if number % 10 == 5:
                await ctx.wait_signal("go")
        return task["upto"]

    async def count(self, number: int, step: StepContext) -> int:
        await step.progress(0.5, str(number))
        return number


def journaled(seen: list[Event]) -> list[Event]:
    """Without those that pass by."""
    passing = {"step.started", "tool.progress", "run.waiting", "run.started"}
    return [event for event in seen if event.kind not in passing]


def whole(seen: list[Event], steps: int = STEPS) -> None:
    """Every journaled event once and in order, the end last."""
    kept = journaled(seen)
    assert [event.id for event in kept] == [str(event.data["seq"]) for event in kept]
    assert [event.data["seq"] for event in kept] == list(range(1, len(kept) + 1))
    assert kept[-1].kind == "run.completed"
    assert seen[-1] is kept[-1]
    counted = [event.data["data"]["result"] for event in kept if event.data["data"].get("name") == "count"]
    assert counted == list(range(steps))


async def signal(nc, run_id: str) -> None:
    await nc.request("run.signal", orjson.dumps({"run_id": run_id, "name": "go"}), timeout=5)


async def read_in_cuts(urls: list[str], run_id: str, nc, *, seed: int, on_cut) -> tuple[list[Event], int]:
    """The events of a run, read by one who is cut off after a few of them again and again."""
    choose = random.Random(seed)
    seen: list[Event] = []
    cuts, signals = 0, 0
    last: str | None = None
    while not seen or seen[-1].kind != "run.completed":
        left = choose.randint(0, 2)
        try:
            async with httpx2.AsyncClient(base_url=choose.choice(urls), timeout=20, trust_env=False) as http:
                async for event in events(http, f"/runs/{run_id}/events", last=last):
                    seen.append(event)
                    last = event.id
                    if event.kind == "run.waiting" or cuts > 200:
                        signals += 1
                        await signal(nc, run_id)
                    left -= 1
                    if left <= 0 and event.kind != "run.completed":
                        break
        except (httpx2.TransportError, AssertionError) as error:
            if isinstance(error, AssertionError) and "503" not in str(error):
                raise
            await asyncio.sleep(0.02)
        cuts += 1
        await on_cut(cuts)
    return seen, cuts


async def test_a_reader_that_is_cut_a_hundred_times_misses_nothing_and_sees_nothing_twice(settings, nc):
    choose = random.Random(1)
    # In the head of an answer, in an event, after one or two: too little for the run to be over before the last cut.
    places = [choose.randint(0, 900) for _ in range(100)]
    upto, cuts = 130, 0
    seen: list[Event] = []
    async with (
        in_process(settings, nc, Counter) as platform,
        web(settings, platform) as one,
        web(settings) as two,
        relay(one.gateway.server.port, two.gateway.server.port, cuts=places) as way,
        httpx2.AsyncClient(base_url=way.url, timeout=20, trust_env=False) as http,
    ):
        run_id = await platform.start_run("counter", {"upto": upto})
        # a run that waits in memory of nobody: its wait is told by an event that passes by, which a cut may lose
        done = asyncio.create_task(keep_going(platform, nc, run_id))
        while not seen or seen[-1].kind != "run.completed":
            try:
                async for event in events(http, f"/runs/{run_id}/events", last=seen[-1].id if seen else None):
                    seen.append(event)  # noqa: PERF401 -- what came before the cut counts
            except httpx2.TransportError:
                cuts += 1
        await done
        assert (cuts, way.taken) == (100, 101)
        told = [(event.id, event.kind, event.data["time"], event.data["data"].get("index")) for event in seen]
        assert len(set(told)) == len(told)  # those that pass by, too
        whole(seen, upto)
        whole(await all_events(two.http, f"/runs/{run_id}/events"), upto)
        assert await all_events(one.http, f"/runs/{run_id}/events", last=seen[-1].id) == []


async def keep_going(platform, nc, run_id: str) -> None:
    while (run := await platform.run(run_id))["status"] != "completed":
        if run["status"] == "waiting":
            await signal(nc, run_id)
        await asyncio.sleep(0.02)


async def test_gateways_that_are_killed_in_between_cost_no_event(settings, nc):
    async with in_process(settings, nc, Counter) as platform:
        with temporary_folder("gateways") as folder:
            async with processes(settings, folder) as made:
                ports = [free_port(), free_port()]
                gateways = [made.start("services.gateway", f"g-{p}", PERDURE_GATEWAY_PORT=str(p)) for p in ports]
                urls = [f"http://127.0.0.1:{port}" for port in ports]
                for url in urls:
                    await eventually(lambda url=url: answers(url), timeout=30)
                run_id = await platform.start_run("counter", {"upto": STEPS})
                killed = []

                async def on_cut(cuts: int) -> None:
                    if cuts in (5, 12):
                        port = ports[len(killed)]
                        killed.append(port)
                        await gateways[len(killed) - 1].kill_all()
                        made.start("services.gateway", f"h-{port}", PERDURE_GATEWAY_PORT=str(port))
                    await signal_if_waiting(platform, nc, run_id)

                seen, _ = await read_in_cuts(urls, run_id, nc, seed=3, on_cut=on_cut)
                assert killed == ports
                whole(seen)


async def signal_if_waiting(platform, nc, run_id: str) -> None:
    if (await platform.run(run_id))["status"] == "waiting":
        await signal(nc, run_id)


async def answers(url: str) -> bool:
    async with httpx2.AsyncClient(trust_env=False) as http:
        try:
            return (await http.get(f"{url}/readyz")).status_code == 200
        except httpx2.TransportError:
            return False


async def test_the_events_of_a_conversation_go_on_from_run_to_run(settings, nc):
    async with in_process(settings, nc, Counter) as platform, web(settings, platform) as door:
        seen: list[Event] = []

        async def read(last: str | None = None) -> None:
            async for event in events(door.http, "/events/talk", last=last):
                seen.append(event)  # noqa: PERF401 -- seen while it grows

        async def turn(run_id: str, upto: int) -> None:
            await platform.ask("counter", {"upto": upto}, run_id=run_id, session_id="talk")

        reading = asyncio.create_task(read())
        for run_id in ("first", "second"):
            await turn(run_id, 2)
        await eventually(lambda: [each.id for each in seen if each.kind == "run.completed"] == ["first:3", "second:3"])
        reading.cancel()
        await turn("third", 1)
        seen.clear()
        reading = asyncio.create_task(read("second:1"))
        await eventually(lambda: any(each.id == "third:2" for each in seen))
        reading.cancel()
        assert [each.id for each in journaled(seen)] == ["second:2", "second:3", "third:1", "third:2"]


async def test_a_silent_stream_has_a_heartbeat_and_ends_when_the_gateway_stops(settings, nc):
    async with in_process(settings, nc, Counter) as platform:
        run_id = await platform.start_run("counter", {"upto": 7})
        async with web(settings, platform, gateway_heartbeat=0.05) as door:
            lines: list[str] = []

            async def read() -> None:
                async with door.http.stream("GET", f"/runs/{run_id}/events") as response:
                    async for line in response.aiter_lines():
                        lines.append(line)  # noqa: PERF401 -- seen while it grows

            reading = asyncio.create_task(read())
            await eventually(lambda: lines.count(": still here") > 2)
            assert door.gateway.door.load.streams == 1
            assert door.gateway.door.load.requests == 0
            await door.gateway.stop()
            await reading  # an orderly end, no error
            assert door.gateway.door.load.streams == 0


async def test_a_reader_that_reads_nothing_is_let_go_and_can_come_back(settings, nc, monkeypatch):
    monkeypatch.setattr(sse, "PATIENCE", 0.2)

    class Flood(BaseAgent):
        name = "flood"

        @workflow
        async def run(self, ctx: Context, task: dict) -> None:
            for _ in range(task["n"]):
                await ctx.emit({"text": "x" * 60_000}, type="note")

    async with in_process(settings, nc, Flood) as platform, web(settings, platform) as door:
        await platform.ask("flood", {"n": 150}, run_id="big")
        host, port = door.gateway.server.host, door.gateway.server.port
        reader, writer = await asyncio.open_connection(host, port, limit=1024)
        writer.write(b"GET /runs/big/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(lambda: door.gateway.door.load.streams == 1)
        await eventually(lambda: door.gateway.door.load.streams == 0)
        writer.close()
        seen = await all_events(door.http, "/runs/big/events", last="100")
        assert [event.id for event in journaled(seen)] == [str(number) for number in range(101, 152)]
        _ = reader


async def test_more_streams_than_the_bound_are_refused(settings, nc):
    async with in_process(settings, nc, Counter) as platform, web(settings, platform, gateway_max_streams=1) as door:
        run_id = await platform.start_run("counter", {"upto": 7})
        async with door.http.stream("GET", f"/runs/{run_id}/events"):
            await eventually(lambda: door.gateway.door.load.streams == 1)
            refused = await door.http.get(f"/runs/{run_id}/events")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        await eventually(lambda: door.gateway.door.load.streams == 0)
