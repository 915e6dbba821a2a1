"""However many watch a run over one connection: NATS sends each of its events once, and each of them sees all."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from typing import Any

import pytest

from perdure import Client
from perdure.agent.base import BaseAgent
from perdure.client import events as events_module
from perdure.client import live
from perdure.client.connection import Connection
from perdure.engine import Context, workflow
from perdure.errors import NotFound
from tests.platform import in_process
from tests.support import eventually

READERS = 20


class Talker(BaseAgent):
    name = "talker"

    @workflow
    async def run(self, ctx: Context, task: int) -> None:
        await ctx.emit({"said": -1}, type="note")
        await ctx.wait_signal("go")
        for number in range(task):
            await ctx.emit({"said": number}, type="note")
        await ctx.wait_signal("more")
        await ctx.emit({"said": task}, type="note")


def notes(events: list[Any]) -> list[int]:
    return [event["data"]["said"] for event in events if event["type"] == "note"]


async def test_one_subscription_is_for_all_who_watch_a_run_and_ends_with_the_last(settings, nc, monkeypatch):
    made: Counter[str] = Counter()
    subscribe = nc.subscribe

    async def counted(subject: str, **more: Any) -> Any:
        made[subject] += 1
        return await subscribe(subject, **more)

    async with in_process(settings, nc, Talker) as platform:
        monkeypatch.setattr(nc, "subscribe", counted)
        run = Client.over(nc, settings).run(await platform.start_run("talker", 5))
        subject = f"run.events.{run.run_id}"
        seen: list[list[Any]] = [[] for _ in range(READERS)]

        async def watch(number: int) -> None:
            async for event in run.events():
                seen[number].append(event)

        watching = [asyncio.create_task(watch(number)) for number in range(READERS)]
        await eventually(lambda: all(notes(each) for each in seen))
        assert made[subject] == 1
        for early in watching[: READERS // 2]:  # who leaves takes nothing from the others
            early.cancel()
        await asyncio.gather(*watching[: READERS // 2], return_exceptions=True)
        await run.signal("go")
        await run.signal("more")
        await asyncio.gather(*watching[READERS // 2 :])
        assert {tuple(notes(each)) for each in seen[READERS // 2 :]} == {(-1, 0, 1, 2, 3, 4, 5)}
        assert made[subject] == 1
        assert [each for each in nc._subs.values() if each.subject == subject] == []


async def test_a_reader_that_takes_its_time_is_told_what_did_not_wait_for_it(settings, nc, monkeypatch):
    monkeypatch.setattr(live, "PENDING", 3)
    monkeypatch.setattr(events_module, "SILENCE", 20.0)  # what comes next says that something is missing
    async with in_process(settings, nc, Talker) as platform:
        client = Client.over(nc, settings)
        run = client.run(await platform.start_run("talker", 40))

        async def waits_again() -> bool:
            return len((await platform.run(run.run_id))["steps"]) > 40

        seen: list[Any] = []
        paused = 0
        async with aclosing(run.events()) as events:
            async for event in events:
                seen.append(event)
                if paused == 0 and notes(seen) == [-1] and event["type"] == "run.waiting":
                    await run.signal("go")
                    await eventually(waits_again)
                    (feed,) = client._connection.live._feeds.values()
                    assert [len(reader) for reader in feed.readers] == [3]
                    paused = len(seen)
                elif paused and len(seen) == paused + 3:
                    await run.signal("more")
        assert notes(seen) == list(range(-1, 41))
        assert seen[-1]["type"] == "run.completed"


class Asked:
    """Answers when it is told to; each answer has the number of its question."""

    def __init__(self) -> None:
        self.asked = 0
        self.may = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def request(self, subject: str, payload: Any, *, timeout: float) -> dict[str, Any]:
        assert subject == "run.get"
        assert timeout > 0
        self.asked += 1
        number = self.asked
        await self.may.acquire()
        if self.error is not None:
            raise self.error
        return {"run_id": payload["run_id"], "number": number}


async def test_who_looks_at_a_run_sees_it_as_it_was_after_that_at_the_earliest(settings, monkeypatch):
    asked = Asked()
    connection = Connection(settings)
    monkeypatch.setattr(connection, "request", asked.request)
    first = asyncio.create_task(connection.look("r"))
    await eventually(lambda: asked.asked == 1)
    later = [asyncio.create_task(connection.look("r")) for _ in range(READERS)]
    other = asyncio.create_task(connection.look("other"))
    await eventually(lambda: asked.asked == 2)  # of the other run: the later ones wait for an answer of their own
    for _ in range(3):
        asked.may.release()
    assert (await first)["number"] == 1
    assert (await other)["number"] == 2
    assert {(await each)["number"] for each in later} == {3}


async def test_a_look_that_fails_or_is_given_up_leaves_nobody_waiting(settings, monkeypatch):
    asked = Asked()
    connection = Connection(settings)
    monkeypatch.setattr(connection, "request", asked.request)
    first = asyncio.create_task(connection.look("r"))
    await eventually(lambda: asked.asked == 1)
    later = [asyncio.create_task(connection.look("r")) for _ in range(READERS)]
    await asyncio.sleep(0)
    first.cancel()
    await eventually(lambda: asked.asked == 2)
    asked.error = NotFound("there is no run 'r'")
    asked.may.release()
    assert {type(each) for each in await asyncio.gather(*later, return_exceptions=True)} == {NotFound}
    with pytest.raises(asyncio.CancelledError):
        await first
