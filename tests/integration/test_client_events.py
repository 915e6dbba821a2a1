from __future__ import annotations

import asyncio
import shutil

import orjson
import pytest

from perdure import Client
from perdure.agent.base import BaseAgent
from perdure.client import events as events_module
from perdure.client.stream import StreamReader
from perdure.engine import Context, Retry, StepContext, workflow
from perdure.engine.events import Events
from perdure.errors import RunFailed
from tests.platform import in_process
from tests.support import eventually

FIRST_HALF = [(0, "run.started"), (1, "step.completed"), (2, "note"), (3, "step.completed")]
WHOLE = [*FIRST_HALF, (4, "step.completed"), (5, "step.completed"), (6, "run.completed")]


class Talker(BaseAgent):
    name = "talker"
    broken = False

    @workflow
    async def run(self, ctx: Context, task: dict) -> int:
        one = await ctx.step("one", self.one, 1)
        await ctx.emit({"index": "not ours", "said": one}, type="note")
        two = await ctx.step("two", self.one, one)
        go = await ctx.wait_signal("go")
        return await ctx.step("three", self.three, two + go, retry=Retry(max_attempts=1))

    @workflow
    async def many(self, ctx: Context, task: dict) -> None:
        for number in range(200):
            ctx.emit({"number": number}, type="note")  # nobody waits for their commit
        await ctx.step("one", self.one, 1)

    async def one(self, n: int, step: StepContext) -> int:
        await step.progress(0.5, "half")
        return n + 1

    async def three(self, n: int) -> int:
        if type(self).broken:
            raise ValueError("not yet")
        return n


@pytest.fixture(autouse=True)
def whole():
    Talker.broken = False


def durable(events: list) -> list[tuple[int, str]]:
    """The journaled ones, and the first and the last."""
    return [(e["seq"], e["type"]) for e in events if e["type"] not in PASSING]


PASSING = {"run.waiting", "step.started", "tool.progress"}


class Watcher:
    """Collects the events of a run."""

    def __init__(self, run) -> None:
        self.seen: list = []
        self._task = asyncio.create_task(self._watch(run))

    async def _watch(self, run) -> None:
        async for event in run.events():
            self.seen.append(event)

    async def end(self) -> list:
        async with asyncio.timeout(30):
            await self._task
        return self.seen

    def cut(self) -> None:
        self._task.cancel()


async def start(client: Client):
    run = await client.start("talker", {})
    await eventually(lambda: is_waiting(run))
    return run


async def is_waiting(run) -> bool:
    return (await run.details(steps=False))["status"] == "waiting"


async def finished(client: Client):
    run = await start(client)
    await run.signal("go", 4)
    assert await run.result(timeout=20) == 7
    return run


async def test_events_are_replayed_and_then_followed_to_the_end(settings, nc):
    async with in_process(settings, nc, Talker), Client(settings) as client:
        run = await start(client)
        watcher = Watcher(run)
        await eventually(lambda: durable(watcher.seen) == FIRST_HALF)
        await run.signal("go", 4)
        seen = await watcher.end()
        assert durable(seen) == WHOLE
        assert seen[-1]["data"] == {"output": 7}
        assert {"tool.progress", "run.waiting", "step.started"} <= {event["type"] for event in seen}
        assert await Watcher(run).end() == seen


async def test_what_passes_by_names_no_row_that_is_not_told_yet(settings, nc):
    async with in_process(settings, nc, Talker) as platform, Client(settings) as client:
        run_id = await platform.start_run("talker", {}, workflow="many")
        seen = 0
        async for event in (await client.get(run_id)).events():
            if event["type"] in PASSING:
                assert event["seq"] <= seen, "who comes back with this seq would miss what is between"
            seen = max(seen, event["seq"])
        assert seen == 202


async def test_doubles_and_foreign_messages_are_dropped(settings, nc):
    async with in_process(settings, nc, Talker), Client(settings) as client:
        run = await start(client)
        watcher = Watcher(run)
        await eventually(lambda: durable(watcher.seen) == FIRST_HALF)
        subject = f"run.events.{run.run_id}"
        for event in list(watcher.seen):
            await nc.publish(subject, orjson.dumps(event))
        for foreign in (b"", b"no json", b"[]", b'{"seq":"1"}', b'{"seq":1,"type":"x","time":"now","data":7}'):
            await nc.publish(subject, foreign)
        await nc.flush()
        await run.signal("go", 4)
        assert durable(await watcher.end()) == WHOLE
        assert durable(await Watcher(run).end()) == WHOLE


async def test_without_a_stream_the_journal_tells_the_events(settings, nc):
    async with in_process(settings, nc, Talker), Client(settings) as client:
        run = await finished(client)
        told = await Watcher(run).end()
        await nc.jetstream().delete_stream("RUN_EVENTS")
        again = await Watcher(run).end()
        assert durable(again) == WHOLE[1:]
        journaled = [event for event in told if event["type"].startswith(("step.completed", "note"))]
        assert again[:-1] == [event for event in journaled if "index" not in event["data"] or event["type"] == "note"]


async def test_what_the_stream_has_lost_comes_from_the_journal_in_its_place(settings, nc):
    async with in_process(settings, nc, Talker), Client(settings) as client:
        run = await finished(client)
        js = nc.jetstream()
        for sequence in range(1, (await js.stream_info("RUN_EVENTS")).state.last_seq + 1):
            event = orjson.loads((await js.get_msg("RUN_EVENTS", sequence)).data)
            if (event["seq"], event["type"]) in ((1, "step.completed"), (2, "note"), (5, "step.completed")):
                await js.delete_msg("RUN_EVENTS", sequence)
        assert durable(await Watcher(run).end()) == WHOLE


async def test_events_end_although_the_last_one_was_never_published(settings, nc, monkeypatch):
    async with in_process(settings, nc, Talker), Client(settings) as client:
        run = await start(client)
        watcher = Watcher(run)
        await eventually(lambda: durable(watcher.seen) == FIRST_HALF)
        monkeypatch.setattr(Events, "moved", lambda *_: None)
        monkeypatch.setattr(Events, "committed", lambda *_: None)
        await run.signal("go", 4)
        assert durable(await watcher.end()) == WHOLE


async def test_a_watch_goes_on_when_nats_is_killed_and_its_streams_are_gone(settings, servers, nc):
    async with in_process(settings, nc, Talker), Client(settings) as client:
        run = await start(client)
        watcher = Watcher(run)
        await eventually(lambda: durable(watcher.seen) == FIRST_HALF)
        await servers.nats.kill()
        await asyncio.to_thread(shutil.rmtree, servers.nats.data_dir)
        await servers.nats.start()
        await run.signal("go", 4, id="once")
        assert durable(await watcher.end()) == WHOLE
        assert await run.result(timeout=20) == 7


async def test_what_was_said_while_the_watcher_was_cut_off_is_read_again(settings, servers, nc):
    async with in_process(settings, nc, Talker) as platform, Client(settings) as client:
        run = await start(client)
        watcher = Watcher(run)
        await eventually(lambda: durable(watcher.seen) == FIRST_HALF)
        # The transport goes, the server stays: the others speak meanwhile.
        client._connection._nats._transport.close()
        await platform.request("run.signal", {"run_id": run.run_id, "name": "go", "payload": 4})
        assert durable(await watcher.end()) == WHOLE


async def test_tokens_sent_while_the_watcher_was_cut_off_come_before_later_ones(settings, nc, monkeypatch):
    monkeypatch.setattr(events_module, "SILENCE", 3600.0)
    async with in_process(settings, nc, Talker), Client(settings) as client:
        run = await start(client)
        watcher = Watcher(run)
        await eventually(lambda: durable(watcher.seen) == FIRST_HALF)

        async def token(index: int) -> None:
            said = {"seq": 3, "type": "llm.delta", "run_id": run.run_id, "agent": "talker", "time": "now"}
            await nc.publish(f"run.events.{run.run_id}", orjson.dumps({**said, "data": {"index": index}}))
            await nc.flush()

        own = client._connection._nats
        own._transport.close()
        await token(100)
        await eventually(lambda: own.stats["reconnects"] and own.is_connected)
        await token(101)
        await run.signal("go", 4)
        tokens = [event["data"]["index"] for event in await watcher.end() if event["type"] == "llm.delta"]
        assert tokens == [100, 101]


async def test_the_end_of_a_run_that_was_resumed_is_not_the_last_event(settings, nc):
    async with in_process(settings, nc, Talker), Client(settings) as client:
        Talker.broken = True
        run = await start(client)
        await run.signal("go", 4)
        with pytest.raises(RunFailed, match="not yet"):
            await run.result(timeout=20)
        assert (await Watcher(run).end())[-1]["type"] == "run.failed"
        await client.resume(run.run_id)
        with pytest.raises(RunFailed, match="not yet"):
            await run.result(timeout=20)
        ends = [event for event in await Watcher(run).end() if event["type"] == "run.failed"]
        assert len(ends) == 2


async def test_a_stored_event_after_the_end_does_not_keep_a_watcher(settings, nc, monkeypatch):
    monkeypatch.setattr(events_module, "LAST_WORDS", 3600.0)
    async with in_process(settings, nc, Talker), Client(settings) as client:
        run = await finished(client)
        late = {"seq": 5, "type": "tool.progress", "run_id": run.run_id, "agent": "talker", "time": "late"}
        await nc.jetstream().publish(f"run.events.{run.run_id}", orjson.dumps({**late, "data": {"index": 99}}))
        assert (await Watcher(run).end())[-1]["type"] == "run.completed"


async def test_a_watcher_that_leaves_early_leaves_no_subscription(settings, nc):
    async with in_process(settings, nc, Talker), Client(settings) as client:
        run = await start(client)
        first = Watcher(run)
        await eventually(lambda: durable(first.seen) == FIRST_HALF)
        subscribed = set(client._connection._nats._subs)
        first.cut()
        # the inbox for what was stored is shared, and stays
        await eventually(lambda: len(client._connection._nats._subs) == len(subscribed) - 1)
        before = set(client._connection._nats._subs)
        watcher = Watcher(run)
        await eventually(lambda: durable(watcher.seen) == FIRST_HALF)
        watcher.cut()
        await eventually(lambda: set(client._connection._nats._subs) == before)


@pytest.mark.parametrize("stored_late", [1, 3])
async def test_what_was_said_before_the_watch_and_is_stored_after_it_is_not_lost(
    settings, nc, monkeypatch, stored_late
):
    read, asked = StreamReader.read, []

    async def late(self):
        asked.append(self)
        return [] if len(asked) <= stored_late else await read(self)

    async with in_process(settings, nc, Talker), Client(settings) as client:
        run = await start(client)
        monkeypatch.setattr(StreamReader, "read", late)
        watcher = Watcher(run)
        await eventually(lambda: asked)
        await eventually(lambda: client._connection.live._feeds)
        await run.signal("go", 1)
        seen = await watcher.end()
    assert durable(seen) == WHOLE
    assert [(e["seq"], e["data"]["fraction"]) for e in seen if e["type"] == "tool.progress"] == [(0, 0.5), (2, 0.5)]
