"""`python -m benchmarks.edge`: what the gateway costs beside a bare FastAPI echo. fsync on, one gateway process.

Prints a table and the machine, and writes `benchmarks/results/edge.json`. `READERS` is the number of event streams.
"""

from __future__ import annotations

import asyncio
import os
import platform as machine
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psutil
from rich.console import Console

from benchmarks.own import own_settings
from perdure.embedded.platform import Platform
from perdure.embedded.ports import free_port
from perdure.embedded.processes import CORE, GATEWAY, ProcessSpec

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
SECONDS = float(os.environ.get("SECONDS", "5"))
READERS = int(os.environ.get("READERS", "1000"))
RUNS = 20


class Connection:
    """One connection that is kept, with as little of HTTP as it takes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def post(self, path: str, body: bytes) -> Any:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        self._writer.write(head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body)
        said = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(said.split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = orjson.loads(await self._reader.readexactly(length))
        if b" 200 " not in said.split(b"\r\n")[0]:
            raise RuntimeError(f"{path}: {answer}")
        return answer

    async def events(self, path: str) -> Any:
        """The data of each event, and when it came (Unix seconds)."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        while line := await self._reader.readline():
            if line.startswith(b"data: "):
                yield orjson.loads(line[6:]), time.time()
            elif line == b"0\r\n":
                return

    def close(self) -> None:
        self._writer.close()


class Served:
    """A process that answers at a port."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self._process = psutil.Process(pid)

    def cpu(self) -> float:
        """Seconds of CPU that it has taken."""
        took = self._process.cpu_times()
        return float(took.user + took.system)

    async def rate(self, path: str, callers: int, *, stream: bool = False) -> dict[str, float]:
        """Requests a second of `callers` connections, and microseconds of this process's CPU for each."""
        done = 0
        end = time.perf_counter() + SECONDS
        before = self.cpu()

        async def call() -> None:
            nonlocal done
            connection = await Connection(self.port).open()
            while time.perf_counter() < end:
                if stream:
                    async for _event in connection.events(path):
                        pass
                else:
                    await connection.post(path, b'{"task":{"file":"may.csv"}}')
                done += 1
            connection.close()

        await asyncio.gather(*(call() for _ in range(callers)))
        return {"rate": done / SECONDS, "cpu_us": (self.cpu() - before) / done * 1e6}


async def beside(ours: Served, path: str, bare: Served, same: str, callers: int, *, stream: bool) -> dict[str, float]:
    """A route of the gateway beside the bare one: which part of its rate, and of its requests for the same CPU."""
    least = await bare.rate(same, callers, stream=stream)
    took = await ours.rate(path, callers, stream=stream)
    return {
        "bare": least["rate"],
        "ours": took["rate"],
        "share": took["rate"] / least["rate"],
        "bare_cpu_us": least["cpu_us"],
        "cpu_us": took["cpu_us"],
        "share_by_cpu": least["cpu_us"] / took["cpu_us"],
    }


def gateway_of(children: list[psutil.Process]) -> int:
    """The id of the gateway's process among these."""
    return next(int(each.pid) for each in children if any("services.gateway" in part for part in each.cmdline()))


async def ended_run(port: int, *, fail: bool) -> str:
    """The address of a run that has ended after one step: its stream is four events."""
    connection = await Connection(port).open()
    body = orjson.dumps({"task": {"ticks": 1, "every": 0, "fail": fail}})
    run = await connection.post("/agents/ticker/run", body)
    async for _event in connection.events(f"{run['status_url']}/events"):
        pass
    connection.close()
    return str(run["status_url"])


async def first_event(port: int) -> float:
    """Milliseconds from the answer to a start until its first event, in the middle of 100."""
    took = []
    for _ in range(100):
        connection = await Connection(port).open()
        run = await connection.post("/agents/ticker/run", b'{"task":{"ticks":0,"every":0}}')
        began = time.perf_counter()
        async for _event in connection.events(f"{run['status_url']}/events"):
            took.append((time.perf_counter() - began) * 1000)
            break
        connection.close()
    return sorted(took)[50]


async def readers(port: int) -> dict[str, float]:
    """Delays of events at many readers, from the moment that stands in the event."""
    starter = await Connection(port).open()
    body = orjson.dumps({"task": {"ticks": 20, "every": 1.0}})
    paths = [(await starter.post("/agents/ticker/run", body))["status_url"] + "/events" for _ in range(RUNS)]
    late: list[float] = []
    complete = 0
    began = datetime.now(UTC)

    async def read(path: str) -> None:
        nonlocal complete
        connection = await Connection(port).open()
        ticks = 0
        async for event, at in connection.events(path):
            said = datetime.fromisoformat(event["time"])
            ticks += event["type"] == "step.completed"
            if (said - began).total_seconds() > 8:  # all have come by then
                late.append((at - said.timestamp()) * 1000)
        complete += ticks == 20
        connection.close()

    await asyncio.gather(*(read(paths[at % RUNS]) for at in range(READERS)))
    late.sort()
    return {
        "readers": READERS,
        "whole": complete,
        "events": len(late),
        "p50": late[len(late) // 2],
        "p99": late[len(late) * 99 // 100],
    }


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as home:
        agent = ProcessSpec("agent-ticker", (str(HERE / "agent.py"),), tuple(each.name for each in CORE))
        settings = own_settings(home)
        async with Platform(settings, processes=(*CORE, GATEWAY, agent), free_ports=True, offline=False) as platform:
            port = int(str(platform.urls.gateway_url).rpartition(":")[2])
            echo_port = free_port()
            echo = await asyncio.create_subprocess_exec(sys.executable, str(HERE / "echo.py"), str(echo_port))
            await asyncio.sleep(2)
            found: dict[str, Any] = {"first_event_ms": await first_event(port), "sse": await readers(port)}
            ours = Served(port, gateway_of(psutil.Process().children(recursive=True)))
            bare = Served(echo_port, echo.pid)
            # A failed run may be resumed, so that its events are read anew for each reader; those of a completed one
            # are kept for a moment.
            read_anew = f"{await ended_run(port, fail=True)}/events"
            kept = f"{await ended_run(port, fail=False)}/events"
            for callers in (1, 16, 64):
                post = ("/agents/nobody/run", bare, "/echo")
                found[f"post_at_{callers}"] = await beside(ours, *post, callers, stream=False)
                for name, path in (("events", read_anew), ("kept_events", kept)):
                    found[f"{name}_at_{callers}"] = await beside(ours, path, bare, "/stream", callers, stream=True)
            echo.terminate()
            await echo.wait()
    about = {"machine": machine.platform(), "python": machine.python_version(), "cores": psutil.cpu_count()}
    said = {**about, "load": os.getloadavg()[0], **found}
    Console(width=140).print(said)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "edge.json").write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    asyncio.run(main())
