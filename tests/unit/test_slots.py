"""How many runs schedulers may claim for a process: totals, so that a lost message takes no slot away for long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from perdure.engine import slots
from perdure.engine.slots import MOST, SECONDS, Slots, read_granted


class Clock:
    now = 100.0

    def time(self) -> float:
        return self.now


class Claims:
    def __init__(self) -> None:
        self.begun: list[str] = []

    async def newest_config(self) -> Any:
        return SimpleNamespace(hash="h", revision=3)

    async def begin_held(self, runs: list[Any], process_id: str) -> None:
        self.begun += [run.run_id for run in runs]


class Outgoing:
    def __init__(self) -> None:
        self.said: list[tuple[str, bytes]] = []

    def put(self, subject: str, payload: bytes, *, soon: bool = False) -> None:
        self.said.append((subject, payload))

    def flush(self) -> None:
        pass


def worker_with(run_slots: int) -> Any:
    return SimpleNamespace(
        settings=SimpleNamespace(run_slots=run_slots), free=run_slots, asked=0, loop=Clock(), takes=True,
        alone=None, process_id="a.one.1", agent_name="a", events=SimpleNamespace(outgoing=Outgoing()),
        offer=SimpleNamespace(names=["run", "run"], versions=["2", "1"], hashes=["h2", "h1"], newest=[True, False]),
    )  # fmt: skip


def message(body: Any) -> Any:
    return SimpleNamespace(data=body if isinstance(body, bytes) else orjson.dumps(body), subject="s")


def held(used: int, *run_ids: str, process_id: str = "a.one.1", scheduler: str = "s1") -> Any:
    rows = [[run_id, "run", "2", None, None, "null"] for run_id in run_ids]
    config = {"config_hash": "h", "config_revision": 3, "since": "2026-01-01T00:00:00+00:00"}
    return message({"process_id": process_id, "scheduler": scheduler, "used": used, "runs": rows, **config})


@pytest.fixture
def worker():
    return worker_with(512)


@pytest.fixture
def claims():
    return Claims()


@pytest.fixture
def reserved(worker, claims):
    return Slots(worker, claims, lambda: worker.asked)


def last(worker: Any) -> Any:
    return read_granted(worker.events.outgoing.said[-1][1])


async def test_a_scheduler_that_asks_is_told_how_many_runs_of_which_workflows(worker, reserved):
    await reserved.wanted(message(b"s1"))
    assert worker.events.outgoing.said[-1][0] == "slots.grant.s1.a"
    assert last(worker).limit == MOST
    assert last(worker).workflows == {"run": ("2", "h2")}, "the newest version alone"
    assert reserved.open == MOST


async def test_all_schedulers_together_get_what_is_kept_and_no_more(worker, reserved):
    for name in (b"s1", b"s2", b"s3", b"s4"):
        await reserved.wanted(message(name))
    assert reserved.open == reserved.kept == 512 * 3 // 4
    worker.free -= 400
    await reserved.wanted(message(b"s5"))
    assert reserved.open == 512 * 3 // 4, "nothing is taken back, and nothing given out beyond"


async def test_what_wake_ups_may_bring_is_not_granted_too(worker, reserved):
    worker.asked = 500
    await reserved.wanted(message(b"s1"))
    assert reserved.open == 12
    assert reserved.kept == 512 * 3 // 4, "the next requests for wake-ups leave room"


async def test_all_slots_are_for_wake_ups_when_no_scheduler_wants_any(worker, reserved):
    assert reserved.kept == 0
    await reserved.wanted(message(b"s1"))
    assert reserved.kept > 0
    worker.loop.now += SECONDS + slots.GRACE + 0.1
    assert reserved.kept == 0


async def test_a_process_with_few_slots_keeps_none(claims):
    worker = worker_with(slots.WORTH - 1)
    few = Slots(worker, claims, lambda: 0)
    await few.wanted(message(b"s1"))
    assert few.open == 0
    assert few.kept == 0


async def test_what_is_used_is_granted_anew(worker, claims, reserved):
    await reserved.wanted(message(b"s1"))
    await reserved.filled(held(MOST // 2, "r1", "r2"))
    assert claims.begun == ["r1", "r2"]
    assert last(worker).limit == MOST // 2 + MOST


async def test_a_lost_message_is_counted_by_the_next_one(worker, reserved):
    await reserved.wanted(message(b"s1"))
    await reserved.filled(held(3, "r3"))
    assert reserved.open == MOST - 3
    await reserved.filled(held(2, "r2"))
    assert reserved.open == MOST - 3, "an older message takes nothing back"


async def test_slots_that_nobody_fills_are_free_again(worker, reserved):
    await reserved.wanted(message(b"s1"))
    await reserved.filled(held(1, "r1"))
    worker.loop.now += SECONDS + slots.GRACE
    assert reserved.open == 0
    await reserved.wanted(message(b"s1"))
    assert last(worker).limit == MOST + 1
    assert reserved.open == MOST


async def test_a_grant_in_use_does_not_run_out(worker, reserved):
    await reserved.wanted(message(b"s1"))
    told = len(worker.events.outgoing.said)
    await reserved.filled(held(1, "r1"))
    assert len(worker.events.outgoing.said) == told, "not for each run"
    worker.loop.now += SECONDS * 0.6
    await reserved.filled(held(2, "r2"))
    worker.loop.now += SECONDS * 0.6
    assert reserved.open > 0
    assert len(worker.events.outgoing.said) == told + 1


@pytest.mark.parametrize("state", [{"takes": False}, {"alone": "r"}], ids=["drains", "alone with a run"])
async def test_a_process_that_takes_no_runs_grants_nothing(worker, reserved, state):
    vars(worker).update(state)
    await reserved.wanted(message(b"s1"))
    assert worker.events.outgoing.said == []


async def test_a_process_that_was_taken_for_lost_begins_to_count_anew(worker, claims, reserved):
    await reserved.wanted(message(b"s1"))
    worker.process_id = "a.one.2"
    await reserved.filled(held(1, "r1"))
    assert claims.begun == [], "what was claimed under the former id is given to others"
    await reserved.wanted(message(b"s1"))
    assert (last(worker).process_id, last(worker).limit) == ("a.one.2", MOST)


async def test_what_is_withdrawn_is_granted_to_nobody(worker, reserved):
    await reserved.wanted(message(b"s1"))
    reserved.withdraw()
    assert last(worker).limit == 0
    assert reserved.open == 0
