"""`python -m benchmarks.agents.way`: what a call of the offline model costs the caller, by each way, in turn."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable

import aiohttp
import openai
import orjson
from rich.console import Console
from rich.table import Table

from perdure.llm.client import ModelClient
from perdure.llm.types import ModelRequest, ModelSettings

ROUNDS, CALLS = 12, 100
SERVER = """
import asyncio, sys
from perdure.llm.offline import OfflineModel
async def main():
    print(await OfflineModel().start(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""
TALK = [
    {"role": role, "content": f"turn {at}: as an echo, I have fixed rules and no knowledge of any kind"}
    for at in range(10)
    for role in ("assistant", "user")
]


async def main() -> None:
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, stdin=PIPE, stdout=PIPE)
    assert server.stdout is not None
    url = (await server.stdout.readline()).decode().strip()
    ours, theirs, bare = ModelClient(), openai.AsyncOpenAI(api_key="-", base_url=url), aiohttp.ClientSession()
    where, body = ModelSettings("offline", url, "-"), {"model": "offline", "messages": TALK}

    async def whole() -> object:
        return await ours.complete(where, ModelRequest(TALK))

    async def streamed() -> object:
        return await ours.complete(where, ModelRequest(TALK), on_delta=lambda *_: None)

    async def client() -> object:
        return await theirs.post("/chat/completions", cast_to=object, body=body)

    async def alone() -> object:
        kind = {"Content-Type": "application/json"}
        async with bare.post(f"{url}/chat/completions", data=orjson.dumps(body), headers=kind) as answer:
            return orjson.loads(await answer.read())

    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "Perdure, whole": whole, "Perdure, streamed": streamed, "openai": client, "aiohttp": alone,
    }  # fmt: skip
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for at in range(ROUNDS + 1):  # the first one warms up
        for name, call in ways.items():
            used = time.process_time()
            for _ in range(CALLS):
                began = time.perf_counter()
                await call()
                took[name].append((time.perf_counter() - began) * 1000)
            cpu[name].append((time.process_time() - used) * 1000 / CALLS)
            if at == 0:
                cpu[name].clear()
                took[name].clear()
    table = Table("way", "caller's CPU, ms a call", "p50 ms")
    for name in ways:
        table.add_row(name, f"{statistics.median(cpu[name]):.2f}", f"{statistics.median(took[name]):.2f}")
    Console().print(table)
    await ours.close()
    await theirs.close()
    await bare.close()
    server.terminate()
    await server.wait()


if __name__ == "__main__":
    asyncio.run(main())
