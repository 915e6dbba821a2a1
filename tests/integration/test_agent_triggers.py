from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import orjson
import pytest
from pydantic import BaseModel

from perdure.agent.base import BaseAgent
from perdure.agent.intake import Triggers
from perdure.agent.triggers import cron, on
from perdure.engine import Context
from tests.platform import in_process
from tests.support import eventually


class Order(BaseModel):
    item: str
    count: int = 1


class Shop(BaseAgent):
    name = "shop"

    @on("orders.created", filter=lambda order: order.item != "boring")
    async def created(self, ctx: Context, order: Order) -> str:
        return f"{order.count} {order.item}"

    @on("stock.>", stream="STOCK")
    async def stocked(self, ctx: Context, task: dict) -> dict:
        return task

    @on("strict", filter=lambda task: task["must"])
    async def strict(self, ctx: Context, task: dict) -> dict:
        return task


async def ended(pool, workflow):
    rows = await pool.fetch(
        "SELECT output FROM runs WHERE workflow = $1 AND status = 'completed' ORDER BY turn", workflow
    )
    return [orjson.loads(row["output"]) for row in rows]


async def dead(pool):
    return await pool.fetch("SELECT * FROM dead_letters ORDER BY id")


async def test_a_message_becomes_one_run_over_all_replicas_with_its_task_typed(settings, nc, pool):
    async with in_process(settings, nc, Shop, Shop):
        await nc.publish("orders.created", b'{"item": "tea", "count": 2}')
        await nc.publish("orders.created", b'{"item": "boring"}')
        for _ in range(3):
            await nc.publish("orders.created", b'{"item": "cup"}', headers={"Nats-Msg-Id": "order-1"})
        await eventually(lambda: two_ended(pool))
        assert sorted(await ended(pool, "created")) == ["1 cup", "2 tea"]
    assert await pool.fetchval("SELECT count(*) FROM runs") == 2


async def two_ended(pool):
    return len(await ended(pool, "created")) == 2


@pytest.mark.parametrize(
    ("subject", "data", "why"),
    [
        ("orders.created", b"{broken", "the message"),
        ("orders.created", b'{"count": 1}', "item"),
        ("orders.created", b"\xff\xfe", "decode"),
        ("strict", b"{}", "the filter raised KeyError"),
    ],
)
async def test_a_message_that_cannot_be_a_task_is_kept_as_a_dead_letter(settings, nc, pool, subject, data, why):
    async with in_process(settings, nc, Shop) as platform:
        await nc.publish(subject, data, headers={"x-from": "test"})
        [letter] = await eventually(lambda: dead(pool))
        counted = platform.services[-1].metrics.read
        await eventually(lambda: counted()["perdure_dead_letters_total"] == {("shop",): 1})
    assert letter["data"] == data
    assert why in letter["reason"]
    assert orjson.loads(letter["headers"]) == {"x-from": "test"}
    assert await pool.fetchval("SELECT count(*) FROM runs") == 0


async def test_messages_of_a_stream_become_runs_also_those_from_before_the_start(settings, nc, pool):
    js = nc.jetstream()
    await js.add_stream(name="STOCK", subjects=["stock.>"])
    await js.publish("stock.a", b'{"n": 1}')
    async with in_process(settings, nc, Shop, Shop):
        await js.publish("stock.b", b'{"n": 2}')
        await js.publish("stock.b", b"{broken")

        async def both():
            return len(await ended(pool, "stocked")) == 2 and len(await dead(pool)) == 1

        await eventually(both)

        async def acked():
            [consumer] = await js.consumers_info("STOCK")
            return consumer.num_ack_pending == 0 and consumer.num_pending == 0

        await eventually(acked)
    async with in_process(settings, nc, Shop):
        await js.publish("stock.c", b'{"n": 3}')

        async def third():
            return len(await ended(pool, "stocked")) == 3

        await eventually(third)
    assert sorted(one["n"] for one in await ended(pool, "stocked")) == [1, 2, 3]
    assert len(await dead(pool)) == 1


class Clock:
    def __init__(self, moment):
        self.moment = moment
        self.changed = asyncio.Event()

    def now(self):
        return self.moment

    async def sleep_until(self, moment):
        while self.moment < moment:
            await self.changed.wait()

    def set(self, moment):
        self.moment = moment
        self.changed.set()
        self.changed = asyncio.Event()


class Daily(BaseAgent):
    name = "daily"

    @cron("0 9 * * *")
    async def report(self, ctx: Context, task: dict) -> str:
        return task["scheduled_for"]

    @cron("0 9 * * *", catch_up=True)
    async def every(self, ctx: Context, task: dict) -> str:
        return task["scheduled_for"]


async def test_a_schedule_makes_one_run_for_a_moment_and_catches_up_as_it_was_told(settings, nc, pool):
    clock = Clock(datetime(2026, 1, 1, 8, tzinfo=UTC))
    async with in_process(settings, nc, Daily) as platform:
        process = platform.services[-1]
        # They have the machine's clock: their marks lie after all of this test's moments.
        await process._triggers.stop()
        await pool.execute("DELETE FROM cron_marks")

        def replica():
            return Triggers(process.agent, process.agent.workflows(), process.agent.resources, clock)

        first, second = replica(), replica()
        await first.start()
        await second.start()

        async def marked():
            return await pool.fetchval("SELECT count(*) FROM cron_marks") == 2

        await eventually(marked)
        clock.set(datetime(2026, 1, 1, 9, tzinfo=UTC))
        await eventually(lambda: has(pool, "report", ["2026-01-01T09:00:00+00:00"]))
        await first.stop()
        await second.stop()
        clock.set(datetime(2026, 1, 4, 12, tzinfo=UTC))
        third = replica()
        await third.start()
        days = [f"2026-01-0{day}T09:00:00+00:00" for day in (1, 2, 3, 4)]
        await eventually(lambda: has(pool, "report", [days[0], days[3]]))
        await eventually(lambda: has(pool, "every", days))
        await third.stop()


async def has(pool, workflow, moments):
    return sorted(await ended(pool, workflow)) == moments


def test_a_trigger_that_makes_no_sense_is_refused_where_it_is_written():
    with pytest.raises(TypeError, match="async method"):
        on("x")(lambda self, ctx, task: None)
    with pytest.raises(ValueError, match="subject"):
        on("two words")
    with pytest.raises(ValueError, match="schedule"):
        cron("often")
