"""A process takes messages as long as it lives: its request expires, its consumer or its stream is gone, it is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nats.aio.client import Client
from nats.aio.msg import Msg

from perdure import subjects
from perdure.bus.pull import PullConsumer
from tests.support import eventually


class Taker:
    """One consumer of the wake-ups of agent `a`; it has room for so many messages that are not done with."""

    def __init__(self, nc: Client, room: int, expires: float) -> None:
        self.room = room
        self.taken: list[bytes] = []
        self.messages: list[Msg] = []
        self.consumer = PullConsumer(
            nc,
            stream=subjects.STREAM_WORK,
            subject=subjects.work("a"),
            durable="a",
            room=lambda: self.room - len(self.messages),
            take=self.take,
            expires=expires,
        )

    def take(self, message: Msg) -> None:
        self.taken.append(message.data)
        self.messages.append(message)

    def done(self) -> None:
        for message in self.messages:
            self.consumer.ack(message)
        self.messages.clear()
        self.consumer.more()


@asynccontextmanager
async def taking(nc: Client, *, room: int = 100, expires: float = 20.0) -> AsyncIterator[Taker]:
    taker = Taker(nc, room, expires)
    task = asyncio.create_task(taker.consumer.run())
    try:
        await eventually(lambda: taker.consumer.asked)
        yield taker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_consumer_or_a_stream_that_is_gone_is_made_again(nc):
    js = nc.jetstream()
    async with taking(nc, expires=1.0) as taker:
        for gone in ("consumer", "stream"):
            if gone == "consumer":
                await js.delete_consumer(subjects.STREAM_WORK, "a")
            else:
                await js.delete_stream(subjects.STREAM_WORK)

            async def comes(word: bytes = gone.encode()) -> bool:
                await nc.publish(subjects.work("a"), word)  # while there is no stream it is lost, as a wake-up may be
                return word in taker.taken

            await eventually(comes)


async def test_a_request_that_expired_is_followed_by_another(nc):
    asked: list[Msg] = []

    async def note(message: Msg) -> None:
        asked.append(message)

    await nc.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", cb=note)
    async with taking(nc, expires=0.25) as taker:
        await eventually(lambda: len(asked) >= 3)
        assert taker.consumer.asked <= 100, "what it had asked for before is over"
        await nc.publish(subjects.work("a"), b"late")
        await eventually(lambda: taker.taken == [b"late"])


async def test_no_more_is_asked_for_than_there_is_room_and_more_as_soon_as_there_is(nc):
    async with taking(nc, room=4) as taker:
        for number in range(10):
            await nc.publish(subjects.work("a"), b"%d" % number)
        await eventually(lambda: len(taker.messages) == 4)
        for taken in (8, 10):
            assert taker.consumer.asked == 0
            taker.done()
            await eventually(lambda taken=taken: len(taker.taken) == taken)
        assert taker.taken == [b"%d" % number for number in range(10)]
