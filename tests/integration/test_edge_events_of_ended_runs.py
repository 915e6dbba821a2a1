"""A run that has ended is told in one answer: the same events as by the long way, to nobody who may not see them, and
never as they were before it was brought back.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from perdure import Client
from perdure.agent.base import BaseAgent
from perdure.edge import endings, keys, sse
from perdure.edge.endings import whole
from perdure.edge.keys import pepper
from perdure.edge.together import Together
from perdure.engine import Context, Retry, StepContext, workflow
from perdure.errors import Unavailable
from tests.edge_support import Web, all_events, problem, web
from tests.platform import InProcess, in_process
from tests.support import eventually


class Counter(BaseAgent):
    name = "counter"
    luck = False

    @workflow
    async def run(self, ctx: Context, task: dict) -> int:
        for number in range(task["upto"]):
            await ctx.step("count", self.count, number)
        if task.get("breaks"):
            await ctx.step("break", self.broken, retry=Retry(max_attempts=1))
        return task["upto"]

    async def count(self, number: int, step: StepContext) -> int:
        await step.progress(0.5, str(number))
        return number

    async def broken(self) -> None:
        if not Counter.luck:
            raise ValueError("no such luck")


@pytest.fixture
async def both(settings, nc):
    async with in_process(settings, nc, Counter) as platform, web(settings, platform) as door:
        yield platform, door


async def ended(platform: InProcess, status: str = "completed", run_id: str | None = None, **task: Any) -> str:
    """A run that has ended so, and whose events are all stored."""
    run = run_id or await platform.start_run("counter", {"upto": 3, **task})

    async def is_ended() -> bool:
        return (await platform.run(run))["status"] == status

    await eventually(is_ended)
    return run


async def test_each_reader_of_an_ended_run_has_what_a_watcher_has(both: tuple[InProcess, Web], nc, settings):
    platform, door = both
    read = door.gateway.door.endings.read
    for status, task in (("completed", {}), ("failed", {"breaks": True})):
        run = await ended(platform, status, **task)
        found = await platform.run(run)
        await eventually(partial(read, found))  # the end is told a moment after its commit
        watched = [event async for event in Client.over(nc, settings).run(run).events()]
        assert {event["type"] for event in watched} >= {"step.completed", "tool.progress", f"run.{status}"}
        path = f"/runs/{run}/events"
        for _again in range(2):
            for after in (None, *(event["seq"] for event in watched)):
                late = [event for event in watched if after is None or event["seq"] > after]
                said = None if after is None else str(after)
                by_header = await all_events(door.http, path, last=said)
                by_query = await all_events(door.http, f"{path}?after={said}" if said else f"{path}?format=perdure")
                for seen in (by_header, by_query):
                    assert [event.data for event in seen] == late
                    assert [(event.id, event.kind) for event in seen] == [(str(e["seq"]), e["type"]) for e in late]
        assert door.gateway.door.load.streams == 0


async def test_what_the_stream_has_lost_is_told_from_the_journal(both: tuple[InProcess, Web], nc):
    platform, door = both
    run = await ended(platform)
    await nc.jetstream().purge_stream("RUN_EVENTS")
    seen = await all_events(door.http, f"/runs/{run}/events")
    assert [(event.id, event.kind) for event in seen] == [
        *((str(seq), "step.completed") for seq in (1, 2, 3)),
        ("4", "run.completed"),
    ]


async def test_a_failed_run_that_was_brought_back_is_told_to_its_new_end(both: tuple[InProcess, Web], monkeypatch):
    platform, door = both
    run = await ended(platform, "failed", breaks=True)
    path = f"/runs/{run}/events"
    assert (await all_events(door.http, path))[-1].kind == "run.failed"
    monkeypatch.setattr(Counter, "luck", True)
    await platform.request("run.resume", {"run_id": run})
    await ended(platform, run_id=run)
    seen = [event.kind for event in await all_events(door.http, path)]
    assert "run.failed" in seen
    assert seen[-1] == "run.completed"


async def test_what_is_kept_for_one_reader_is_shown_to_no_stranger_and_not_for_long(
    both: tuple[InProcess, Web], monkeypatch
):
    platform, door = both
    under = await asyncio.to_thread(pepper, door.gateway.settings)

    async def key(**said: Any) -> dict[str, str]:
        made = await keys.create(door.gateway.pool, under, name="reader", role="viewer", **said)
        return {"Authorization": f"Bearer {made.key}"}

    own, other = await key(tenant="acme"), await key(tenant="evil")
    narrow = await key(tenant="acme", agents=["another"])
    await platform.start_run("counter", {"upto": 1}, run_id="acme__r")
    await ended(platform, run_id="acme__r")
    path, kept = "/runs/acme__r/events", door.gateway.door.endings.kept

    async def is_kept() -> bool:
        return bool(await all_events(door.http, path, headers=own)) and kept("acme__r") is not None

    await eventually(is_kept)
    for stranger in (other, narrow):
        for place in (path, f"{path}?after=0"):
            problem(await door.http.get(place, headers=stranger), "not_found", 404)
    problem(await door.http.get(path), "unauthorized", 401)
    await door.gateway.pool.execute("DELETE FROM runs WHERE run_id = 'acme__r'")
    monkeypatch.setattr(endings, "KEPT_FOR", -1.0)
    problem(await door.http.get(path, headers=own), "not_found", 404)


async def test_what_is_kept_is_bounded(both: tuple[InProcess, Web], monkeypatch):
    platform, door = both
    first, second = await ended(platform), await ended(platform)
    made = door.gateway.door.endings

    async def is_kept(run: str) -> bool:
        return bool(await all_events(door.http, f"/runs/{run}/events")) and made.kept(run) is not None

    await eventually(lambda: is_kept(first))
    monkeypatch.setattr(endings, "MOST", made._bytes + 10)
    await eventually(lambda: is_kept(second))
    assert made.kept(first) is None
    assert 0 < made._bytes <= endings.MOST
    monkeypatch.setattr(endings, "LARGEST", 10)
    third = await ended(platform)
    assert (await all_events(door.http, f"/runs/{third}/events"))[-1].kind == "run.completed"
    assert made.kept(third) is None


async def test_lookups_that_wait_are_one_statement_and_none_is_older_than_its_question(pool):
    await pool.execute("CREATE TABLE things (name text PRIMARY KEY, number int)")
    await pool.execute("INSERT INTO things VALUES ('a', 1), ('b', 2)")
    asked: list[list[str]] = []
    found = Together(pool, "SELECT name, number FROM things WHERE name = ANY($1::text[])", what="things")
    look = found._look

    async def counted(names: list[str]) -> Any:
        asked.append(sorted(names))
        return await look(names)

    found._look = counted  # type: ignore[method-assign]
    rows = await asyncio.gather(*(found.ask(name) for name in "abca"))
    assert [row and row["number"] for row in rows] == [1, 2, None, 1]
    assert asked == [["a", "b", "c"]]
    first = asyncio.create_task(found.ask("a"))
    await eventually(lambda: len(asked) == 2)  # under way
    await pool.execute("UPDATE things SET number = 7 WHERE name = 'a'")
    assert (await found.ask("a"))["number"] == 7
    await first
    await pool.execute("DROP TABLE things")
    with pytest.raises(Unavailable, match="things cannot be looked up now"):
        await found.ask("a")
    await found.stop()


def told(seq: int, kind: str = "step.completed", index: int | None = None, time: str = "t") -> Any:
    return {"seq": seq, "type": kind, "time": time, "data": {} if index is None else {"index": index}}


END = told(3, "run.completed")
WHOLE = (told(1), told(1, "tool.progress", 1), told(2), END)


@pytest.mark.parametrize(
    ("events", "kept"),
    [
        (WHOLE, list(WHOLE)),
        ((*WHOLE, told(2, "tool.progress", 1)), list(WHOLE)),  # it passed by while the run ended
        ((told(1), told(2), None, END), [told(1), told(2), END]),
        ((*WHOLE[:2], *WHOLE[1:]), list(WHOLE)),  # one that passes by was stored twice
        ((), None),
        (WHOLE[:-1], None),  # the end is not there yet
        ((told(1), END), None),  # a gap
        ((told(2), told(1), END), None),
        ((told(1), told(1), told(2), END), None),
        ((told(1), told(2, "run.failed"), END), None),  # it was brought back
        ((*WHOLE, told(4)), None),
        ((told(1), told(2), told(3)), None),
    ],
)
def test_only_a_whole_sequence_is_taken_as_it_is(events, kept):
    assert whole(events, 3) == kept


def test_an_answer_that_is_all_there_is_sent_in_chunks_as_any_other():
    response = sse.sent(b"x")
    assert "content-length" not in response.headers
    assert response.headers["content-type"].startswith("text/event-stream")
