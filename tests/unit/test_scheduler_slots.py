"""Which process a scheduler gives a run that it accepts."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from perdure.engine import runs
from perdure.engine.rows import Start
from perdure.engine.slots import Granted
from perdure.engine.start_options import StartOptions
from services.scheduler import slots
from services.scheduler.slots import Slots


class Outgoing:
    def __init__(self) -> None:
        self.said: list[tuple[str, bytes]] = []

    def put(self, subject: str, payload: bytes, *, soon: bool = False) -> None:
        self.said.append((subject, payload))


@pytest.fixture
def outgoing():
    return Outgoing()


@pytest.fixture
def ours(outgoing):
    return Slots(SimpleNamespace(is_connected=True), outgoing)  # type: ignore[arg-type]


async def grant(ours: Slots, limit: int, *, process: str = "a.one.1", agent: str = "a", seconds: float = 60.0) -> None:
    said = Granted(process, limit, seconds, "config", 3, {"run": ("2", "source")})
    await ours._granted(SimpleNamespace(subject=f"slots.grant.{ours.name}.{agent}", data=said.dump()))  # type: ignore[arg-type]


def start_of(run_id: str, task: Any = None, **more: Any) -> Start:
    return runs.new_start(run_id, "a", task, **more)


def placed(ours: Slots, *starts: Start) -> list[str | None]:
    ours.place(starts)
    return [start.holder and start.holder.process_id for start in starts]


def held(*starts: Start) -> None:
    """What the statement says of those that got their slot."""
    for start in starts:
        start.held = (start.run_id, start.workflow, "2", None, None, start.task)
        start.held_since = datetime(2026, 1, 1, tzinfo=UTC)


async def test_no_more_than_was_granted(ours):
    assert placed(ours, start_of("r0")) == [None]
    await grant(ours, 2)
    starts = [start_of(f"r{n}") for n in range(3)]
    assert placed(ours, *starts) == ["a.one.1", "a.one.1", None]
    held(*starts[:2])
    ours.settle(starts)
    assert placed(ours, start_of("r4")) == [None], "they are used up"
    await grant(ours, 3)
    assert placed(ours, start_of("r5")) == ["a.one.1"], "the limit is a total"


async def test_a_slot_that_was_not_filled_is_free_again(ours):
    await grant(ours, 1)
    first = start_of("r1")
    assert placed(ours, first) == ["a.one.1"]
    ours.settle([first])
    assert placed(ours, start_of("r2")) == ["a.one.1"]


async def test_a_grant_ends(ours):
    await grant(ours, 5, seconds=0.0)
    assert placed(ours, start_of("r")) == [None]


async def test_the_process_with_most_slots_is_next(ours):
    await grant(ours, 2, process="a.one.1")
    await grant(ours, 2, process="a.two.1")
    assert sorted(map(str, placed(ours, start_of("r1"), start_of("r2")))) == ["a.one.1", "a.two.1"]


async def test_one_turn_of_a_session_at_a_time(ours):
    await grant(ours, 9)
    turns = [start_of(name, session_id=session) for name, session in (("r1", "s"), ("r2", "s"), ("r3", "t"))]
    assert placed(ours, *turns) == ["a.one.1", None, "a.one.1"]


@pytest.mark.parametrize(
    "start",
    [
        lambda: start_of("r", options=StartOptions(queue="q")),
        lambda: start_of("r", workflow="another"),
        lambda: start_of("r", "x" * (slots.LARGEST + 1)),
    ],
    ids=["with options", "of a workflow that it has not", "with a large task"],
)
async def test_what_goes_the_long_way(ours, start):
    await grant(ours, 9)
    assert placed(ours, start()) == [None]


async def test_nothing_is_given_while_nats_is_away(ours):
    await grant(ours, 9)
    ours._nats.is_connected = False
    assert placed(ours, start_of("r")) == [None]


async def test_an_agent_grants_for_itself_alone(ours):
    await grant(ours, 9, process="b.one.1", agent="a")
    assert placed(ours, start_of("r")) == [None]


async def test_runs_of_one_process_go_in_one_message_that_says_the_total(ours, outgoing):
    await grant(ours, 9)
    starts = [start_of("r1", {"n": 1}), start_of("r2", {"n": 2}), start_of("r3")]
    ours.place(starts)
    held(*starts[:2])
    ours.settle(starts)
    ours.tell(starts)
    [(subject, payload)] = outgoing.said
    said = orjson.loads(payload)
    assert subject == "process.a.one.1.claimed"
    assert (said["used"], said["config_hash"], [run[0] for run in said["runs"]]) == (2, "config", ["r1", "r2"])


async def test_large_tasks_go_in_several_messages(ours, outgoing):
    await grant(ours, 9)
    starts = [start_of(f"r{n}", "\u4e2d" * (slots.LARGEST - 10)) for n in range(5)]
    ours.place(starts)
    held(*starts)
    ours.tell(starts)
    assert [len(orjson.loads(payload)["runs"]) for _, payload in outgoing.said] == [2, 2, 1]
    assert all(len(payload) < 1024 * 1024 for _, payload in outgoing.said)


async def test_a_scheduler_that_is_started_again_uses_no_total_of_the_one_before(ours, outgoing):
    again = Slots(ours._nats, outgoing)
    assert again.name != ours.name
    ours.ask("a")
    again.ask("a")
    assert [payload.decode() for _, payload in outgoing.said] == [ours.name, again.name]


async def test_an_agent_for_each_start_fills_no_memory(ours):
    for n in range(slots.AGENTS * 2):
        ours.ask(f"a{n}")
    assert len(ours._asked) <= slots.AGENTS


async def test_slots_are_asked_for_now_and_then(ours, outgoing):
    for _ in range(3):
        ours.ask("a")
    ours.ask("b")
    ours._asked["a"] -= slots.ASK_EVERY * 2
    ours.ask("a")
    assert [subject for subject, _ in outgoing.said] == ["slots.want.a", "slots.want.b", "slots.want.a"]
