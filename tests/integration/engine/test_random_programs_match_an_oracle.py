"""Random workflows, lost at random moments and with answers of the database lost, against what they would yield."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, points, workflow
from perdure.errors import PermanentError, StepFailed
from tests.engine_support import at_rest, losing_answers, release, until
from tests.platform import in_process

ONCE = Retry(max_attempts=1)
DEPTH, LENGTH = 3, 4
Program = list[list[Any]]


def program(draw: random.Random, depth: int = 0, signals: list[str] | None = None) -> Program:
    """A list of operations; `signals` collects the names that it waits for."""
    names = signals if signals is not None else []
    found: Program = []
    for _ in range(draw.randint(1, LENGTH)):
        kinds = ["step", "step", "sync", "fail", "sleep", "signal", "book", "emit", "chance", "late"]
        kind = draw.choice(kinds + (["gather", "gather", "call"] if depth < DEPTH else []))
        if kind == "gather":
            found.append([kind, [program(draw, depth + 1, names) for _ in range(draw.randint(0, 3))]])
        elif kind == "call":
            found.append([kind, program(draw, DEPTH, [])])
        elif kind == "signal":
            names.append(f"s{len(names)}")
            found.append([kind, names[-1]])
        else:
            found.append([kind, draw.randint(0, 99)])
    return [op for op in found if depth < DEPTH or op[0] != "signal"]


def oracle(ops: Program) -> list[Any]:
    """What the program yields."""
    yields = {
        "step": lambda n: n * 2,
        "sync": lambda n: n * 2,
        "fail": lambda n: f"failed {n}",
        "sleep": lambda _n: None,
        "signal": lambda name: f"payload of {name}",
        "book": lambda n: n + 1,
        "emit": lambda _n: None,
        "chance": lambda n: n * 2,
        "late": lambda _n: "timed out",
        "gather": lambda parts: [oracle(part) for part in parts],
        "call": oracle,
    }
    return [yields[kind](argument) for kind, argument in ops]


class Interpreting(BaseAgent):
    name = "interpreting"

    @workflow
    async def run(self, ctx: Context, task: Program) -> list[Any]:
        return [await self.do(ctx, kind, argument) for kind, argument in task]

    async def do(self, ctx: Context, kind: str, n: Any) -> Any:
        return await getattr(self, f"do_{kind}")(ctx, n)

    async def do_step(self, ctx: Context, n: int) -> Any:
        return await ctx.step("double", self.double, n)

    async def do_sync(self, ctx: Context, n: int) -> Any:
        return await ctx.step("sync", self.in_thread, n)

    async def do_fail(self, ctx: Context, n: int) -> Any:
        with pytest.raises(StepFailed) as failed:
            await ctx.step("fail", self.fail, n, retry=ONCE)
        return failed.value.cause["message"]

    async def do_sleep(self, ctx: Context, n: int) -> Any:
        return await ctx.sleep(n / 5000)

    async def do_signal(self, ctx: Context, name: str) -> Any:
        return await ctx.wait_signal(name)

    async def do_late(self, ctx: Context, n: int) -> Any:
        with pytest.raises(TimeoutError):
            await ctx.wait_signal("never", timeout=n / 5000)
        return "timed out"

    async def do_book(self, ctx: Context, n: int) -> Any:
        return await ctx.transaction("book", self.book, n)

    async def do_emit(self, ctx: Context, n: int) -> Any:
        return await ctx.emit({"n": n})

    async def do_chance(self, ctx: Context, n: int) -> Any:
        return await ctx.step("chance", self.first, n, str(ctx.now()), str(ctx.uuid()), ctx.random())

    async def do_gather(self, ctx: Context, parts: list[Program]) -> Any:
        return await ctx.gather(*(self.run(ctx, part) for part in parts))

    async def do_call(self, ctx: Context, ops: Program) -> Any:
        return await ctx.call("interpreting", ops)

    async def double(self, n: int) -> int:
        await asyncio.sleep(0)
        return n * 2

    def in_thread(self, n: int) -> int:
        return n * 2

    async def fail(self, n: int) -> None:
        raise PermanentError(f"failed {n}")

    async def first(self, n: int, *_chance: Any) -> int:
        return n * 2

    async def book(self, connection: Any, n: int) -> int:
        await connection.execute("INSERT INTO booked VALUES ($1)", n)
        return n + 1


@contextmanager
def losing_at_random(draw: random.Random, process: Any, often: float) -> Iterator[list[str]]:
    """Within: at any point that a run reaches it may be lost, and is claimed anew."""
    losses: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    def strike(point: str, run_id: str, name: str) -> None:
        execution = process.worker.executions.get(run_id)
        if execution is not None and not execution.closed and draw.random() < often:
            losses.append(point)
            execution.close()
            tasks.append(asyncio.get_running_loop().create_task(release(process, execution)))

    remove = points.install(strike)
    try:
        yield losses
    finally:
        remove()


def books(ops: Program) -> int:
    """How many transactions the program makes."""
    inner = {"gather": lambda parts: sum(books(part) for part in parts), "call": books, "book": lambda _n: 1}
    return sum(inner.get(kind, lambda _n: 0)(argument) for kind, argument in ops)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_programs_yield_what_they_would_without_any_loss(settings, nc, pool, seed):
    await pool.execute("CREATE TABLE booked (n integer)")
    draw = random.Random(seed)
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Interpreting)
        process.worker.linger = draw.choice([0.0, 0.02])
        expected: dict[str, list[Any]] = {}
        booked = 0
        with losing_at_random(draw, process, 0.15) as losses, losing_answers(process, every=4):
            for number in range(8):
                names: list[str] = []
                ops = program(draw, signals=names)
                expected[f"r{number}"] = oracle(ops)
                booked += books(ops)
                await platform.start_run("interpreting", ops, run_id=f"r{number}")
                for name in names:
                    said = {"run_id": f"r{number}", "name": name, "payload": f"payload of {name}"}
                    await platform.request("run.signal", said)
            for run_id, output in expected.items():
                run = await until(
                    platform, run_id, "completed", "failed", "blocked", "needs_review", "cancelled", timeout=40
                )
                assert run["status"] == "completed", run["error"]
                assert run["output"] == output
        assert losses
        await at_rest(process)
    assert await pool.fetchval("SELECT count(*) FROM booked") == booked, "a transaction is made once"
