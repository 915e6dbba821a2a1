from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, Field

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from perdure.engine.entries import Entry
from perdure.engine.journal import Journal
from perdure.engine.rows import JournalRow, Move
from perdure.errors import StepFailed
from tests.engine_support import losing, until
from tests.platform import in_process
from tests.support import eventually


class Price(BaseModel):
    amount: float | None
    at: datetime


@dataclass
class Line:
    name: str
    weight: float | None = None


@dataclass
class Order:
    lines: list[Line]
    price: Price


class Named(BaseModel):
    item: int = Field(alias="itemId")
    odd: int = Field(1, validation_alias="Odd", serialization_alias="even")


class Sending(BaseAgent):
    name = "sending"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        found: list[Any] = []
        for function in (
            self.order, self.nul, self.nothing, self.pair, self.obj, self.deep, self.nan, self.model_nan, self.data_nan,
            self.big, self.surrogate, self.long, self.wrong, self.itself, self.named, self.names,
        ):  # fmt: skip
            try:
                value = await ctx.step(function.__name__, function)
                found.append(self.describe(value))
            except (TypeError, StepFailed) as error:
                found.append([type(error).__name__, str(error)])
        return found

    @workflow
    async def outputs(self, ctx: Context, task: Any) -> Any:
        return {"object": object(), "long": "x" * 2_000_000, "nan": {"a": [math.nan]}}[task]

    @staticmethod
    def describe(value: Any) -> Any:
        if isinstance(value, Order):
            return [type(value.lines[0]).__name__, value.price.at.isoformat(), value.price.amount]
        if isinstance(value, Named):
            return ["Named", value.item, value.odd]
        if isinstance(value, dict):
            value = [[type(each).__name__, each.item] for each in value["all"]]
        return [type(value).__name__, value]

    async def order(self) -> Order:
        return Order([Line("a")], Price(amount=2.5, at=datetime(2026, 1, 1, tzinfo=UTC)))

    async def nul(self) -> str:
        return "a\x00b"

    async def nothing(self) -> None:
        return None

    async def pair(self):
        return (1, {2: "two"})

    async def obj(self):
        return {"lines": [{"ok": 1}, {"bad": object()}]}

    async def deep(self):
        return [[[object()]]]

    async def nan(self):
        return {"rate": math.nan}

    async def model_nan(self) -> Price:
        return Price(amount=math.inf, at=datetime(2026, 1, 1, tzinfo=UTC))

    async def data_nan(self) -> Line:
        return Line("a", math.nan)

    async def big(self):
        return {"n": 2**70}

    async def surrogate(self):
        return {"text": "\ud800"}

    async def long(self):
        return "x" * 2_000_000

    async def wrong(self) -> list[int]:
        return ["seven"]  # type: ignore[list-item]

    async def named(self) -> Named:
        return Named(itemId=5, Odd=7)

    async def names(self) -> dict[str, tuple[Named, ...]]:
        return {"all": (Named(itemId=5),)}

    async def itself(self):
        found: list[Any] = []
        found.append(found)
        return found


EXPECTED = [
    ["Line", "2026-01-01T00:00:00+00:00", 2.5],
    ["str", "a\x00b"],
    ["NoneType", None],
    ["list", [1, {"2": "two"}]],
    ["TypeError", "the result of step 'obj'.lines[1].bad is a object, which cannot travel as JSON"],
    ["TypeError", "the result of step 'deep'[0][0][0] is a object"],
    ["TypeError", "the result of step 'nan'.rate is nan, which JSON cannot carry"],
    ["TypeError", "the result of step 'model_nan'.amount is inf, which JSON cannot carry"],
    ["TypeError", "the result of step 'data_nan'.weight is nan, which JSON cannot carry"],
    ["TypeError", "the result of step 'big'.n is an integer of more than 64 bits"],
    ["TypeError", "the result of step 'surrogate'.text is text that is not valid Unicode"],
    ["TypeError", "the result of step 'long' has 2000002 bytes; the limit is 1000000"],
    ["TypeError", "the result of step 'wrong' does not fit its annotation"],
    ["TypeError", "is nested too deeply"],
    ["Named", 5, 7],
    ["list", [["Named", 5]]],
]


@pytest.fixture
async def sending(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Sending, max_payload=1_000_000)


@pytest.mark.parametrize("often", ["straight", "lost after each row"])
async def test_results_come_back_typed_and_what_cannot_travel_names_its_field(sending, often):
    platform, process = sending
    run_id = "r"
    if often == "straight":
        await platform.start_run("sending", {}, run_id=run_id)
        run = await until(platform, run_id, "completed", "failed", "needs_review")
    else:
        with losing(process):
            await platform.start_run("sending", {}, run_id=run_id)
            run = await until(platform, run_id, "completed", "failed", "needs_review", timeout=20)
    assert run["status"] == "completed", run["error"]
    for found, expected in zip(run["output"], EXPECTED, strict=True):
        assert found[0] == expected[0]
        assert found[1:] == expected[1:] or expected[1] in found[1], found


@pytest.mark.parametrize(
    ("task", "said"), [("object", "the output is a"), ("long", "the limit"), ("nan", "a[0] is nan")]
)
async def test_an_output_that_cannot_travel_fails_its_run(sending, task, said):
    platform, _ = sending
    run_id = await platform.start_run("sending", task, workflow="outputs")
    run = await until(platform, run_id, "failed", "completed", "needs_review")
    assert (run["status"], run["error"]["type"]) == ("failed", "TypeError")
    assert said in run["error"]["message"]


class Guilty(BaseAgent):
    name = "guilty"

    @workflow
    async def run(self, ctx: Context, task: str) -> Any:
        try:
            return await ctx.step("say", self.say, task)
        except StepFailed as error:
            return error.cause["type"]

    @workflow
    async def output(self, ctx: Context, task: str) -> str:
        return task

    async def say(self, value: str) -> str:
        return value


async def test_a_row_that_the_database_refuses_fails_its_own_step_alone(settings, nc, pool):
    await pool.execute("ALTER TABLE journal ADD CONSTRAINT no_guilt CHECK (result::text NOT LIKE '%guilty%')")
    await pool.execute("ALTER TABLE runs ADD CONSTRAINT no_guilt CHECK (output::text NOT LIKE '%guilty%')")
    async with in_process(settings, nc) as platform:
        tasks = ["guilty" if n == 7 else f"fine {n}" for n in range(20)]
        run_ids = [await platform.start_run("guilty", task) for task in tasks]
        ends = [await platform.start_run("guilty", task, workflow="output") for task in tasks]
        await platform.agent(Guilty)  # all of them come in one batch
        for task, run_id in zip(tasks, run_ids, strict=True):
            run = await until(platform, run_id, "completed", "failed", "needs_review")
            assert run.get("output") == ("OutcomeRefused" if task == "guilty" else task)
        for task, run_id in zip(tasks, ends, strict=True):
            run = await until(platform, run_id, "completed", "failed", "needs_review")
            assert run["status"] == ("failed" if task == "guilty" else "completed")
            assert task != "guilty" or run["error"]["type"] == "OutcomeRefused"


class Hearing:
    """A run as the journal sees it, that remembers what it was told."""

    epoch = 0

    def __init__(self, run_id: str, fails: bool = False) -> None:
        self.run_id = run_id
        self.fails = fails
        self.heard: list[str] = []

    def recorded(self, row: JournalRow) -> None:
        self.heard.append(f"recorded {row.seq}")
        if self.fails:
            raise KeyError("a fault of the engine")

    def refused(self, row: JournalRow, reason: str) -> None:
        self.heard.append(f"refused {row.seq}")

    def fenced(self) -> None:
        self.heard.append("fenced")

    def moved(self, move: Move) -> None:
        self.heard.append(f"moved {move.status}")

    def failed(self, error: BaseException) -> None:
        self.heard.append(f"failed {type(error).__name__}")


async def test_a_row_that_the_client_library_refuses_and_a_run_that_fails_keep_no_other_from_going_on(pool):
    import asyncio

    now = datetime.now(UTC)
    await pool.execute("INSERT INTO runs (run_id, agent_name, task, task_hash, status) "
                       "SELECT x, 'a', '1', 'h', 'running' FROM unnest('{r1,r2,r3,r4}'::text[]) AS x")  # fmt: skip
    writers = [Hearing("r1"), Hearing("r2"), Hearing("r3", fails=True), Hearing("r4")]
    journal = Journal(pool, lambda _entries: None)
    task = asyncio.create_task(journal.run())
    for writer in writers:
        attempt = 2**40 if writer.run_id == "r2" else 1  # more than the column takes: asyncpg refuses it itself
        row = JournalRow(1, "1", "step", "s", "h", "ok", "1", None, attempt, None, None, 0, now, now)
        journal.add(Entry(writer, row=row))
    for writer in writers:
        journal.add(Entry(writer, move=Move("completed", output="1", end_seq=2)))
    await eventually(lambda: journal.idle and all(len(writer.heard) >= 2 for writer in writers))
    assert [writer.heard for writer in writers] == [
        ["recorded 1", "moved completed"],
        ["refused 1", "moved completed"],
        ["recorded 1", "failed KeyError", "moved completed"],
        ["recorded 1", "moved completed"],
    ]
    task.cancel()
