from __future__ import annotations

from datetime import timedelta

import orjson
import pytest
from pydantic import BaseModel

from perdure.agent.base import BaseAgent
from perdure.agent.triggers import cron, every, on
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


def test_a_trigger_that_makes_no_sense_is_refused_where_it_is_written():
    with pytest.raises(TypeError, match="async method"):
        on("x")(lambda self, ctx, task: None)
    with pytest.raises(ValueError, match="subject"):
        on("two words")
    for wrong in ("often", "@every", "@every 0s", "@every 30", "@every 400d", "@every 1s2s"):
        with pytest.raises(ValueError, match="schedule"):
            cron(wrong)
    for wrong in ("often", "", 0, 0.5, -5, float("nan"), timedelta(milliseconds=1), timedelta(days=400)):
        with pytest.raises(ValueError, match="interval"):
            every(wrong)
    with pytest.raises(ValueError, match="time zone"):
        cron("@every 30s", timezone="Europe/Rome")
    with pytest.raises(ValueError, match="overlap"):
        every("30s", overlap="often")
    with pytest.raises(ValueError, match="catch_up"):
        every("30s", overlap="skip", catch_up=True)
    with pytest.raises(ValueError, match="name"):
        every("30s", name="two words")
