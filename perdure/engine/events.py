"""Events of runs, on `run.events.<run_id>`: what the journal says, as it is committed, and what passes by.

A durable event's `seq` is its journal row's (0 is `run.started`, the end comes last). An event that passes by (a step
that begins, a token) carries the seq of the last row before it and an `index`, and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from perdure import subjects
from perdure.bus.outgoing import Outgoing
from perdure.engine.rows import JournalRow, Move
from perdure.store.vault import PLAIN, Vault

if TYPE_CHECKING:
    from nats.aio.client import Client

    from perdure.engine.execution import Execution
    from perdure.engine.steps import StepCall

_LONGEST_RESULT = 8_192
LARGEST_DATA = (
    262_144  # bytes of an event of the workflow, or of an output in the word of a run's end; the rest is read
)

AT_LEISURE = 16  # runs in memory up to which the beginning of every step is told, however short it is

_STEP_EVENTS = {"ok": "step.completed", "error": "step.failed", "timeout": "step.failed", "open": "step.started"}


def render(
    seq: int,
    kind: str,
    run_id: str,
    agent: str,
    time: datetime,
    data: bytes,
    vault: Vault = PLAIN,
    index: int | None = None,
) -> bytes:
    """An event's JSON; `data` is JSON already, and sealed if `vault` does so."""
    if vault.seals:
        data = vault.seal_event(data, run_id, seq, index)
    return b'{"seq":%d,"type":%s,"run_id":"%s","agent":"%s","time":"%s","data":%s}' % (
        seq,
        orjson.dumps(kind),
        run_id.encode(),
        agent.encode(),
        time.isoformat().encode(),
        data,
    )


def row_event(row: JournalRow, run_id: str, agent: str, vault: Vault = PLAIN) -> bytes | None:
    """The event that a journal row stands for, or `None` for rows that are the engine's own."""
    if row.kind == "event":
        said = orjson.loads(row.result or "{}")
        data = orjson.dumps(said["data"])
        if len(data) > LARGEST_DATA:
            data = b'{"large":%d}' % len(data)
        return render(row.seq, said["type"], run_id, agent, row.finished_at, data, vault)
    kind = "step.retrying" if row.kind == "retry" else _STEP_EVENTS[row.outcome]
    parts = b'{"name":%s,"path":"%s","kind":"%s","attempt":%d' % (
        orjson.dumps(row.name),
        row.path.encode(),
        row.kind.encode(),
        row.attempt,
    )
    if row.result is not None and len(row.result) <= _LONGEST_RESULT:
        parts += b',"result":' + row.result.encode()
    if row.error is not None and len(row.error) <= LARGEST_DATA:
        parts += b',"error":' + row.error.encode()
    if row.due_at is not None:
        parts += b',"due_at":"%s"' % row.due_at.isoformat().encode()
    return render(row.seq, kind, run_id, agent, row.finished_at, parts + b"}", vault)


def end_data(output: str | None, error: str | None) -> bytes:
    """The data of an event about a whole run."""
    if error is not None and len(error) <= LARGEST_DATA:
        return b'{"error":%s}' % error.encode()
    if output is not None and len(output) <= _LONGEST_RESULT:
        return b'{"output":%s}' % output.encode()
    return b"{}"


class Events:
    """Publishes the events of one process's runs, after the commit that they tell of."""

    __slots__ = ("_begun", "_indexes", "_nats", "_runs", "_vault", "outgoing")

    def __init__(self, nats: Client, runs: Sized, vault: Vault = PLAIN) -> None:
        self._nats = nats
        self._runs = runs  # those in memory
        self._vault = vault
        self._indexes: dict[str, int] = {}
        self._begun: dict[StepCall, tuple[int, datetime]] = {}  # steps that began this moment: attempt and time
        self.outgoing = Outgoing(nats, self._tell_begun)

    def _send(self, run_id: str, payload: bytes) -> None:
        self.outgoing.put(subjects.run_events(run_id), payload)

    def publish(self, subject: str, payload: bytes) -> None:
        """Send now, without waiting; a message that cannot leave is counted, the journal has what it says."""
        self.outgoing.put(subject, payload, soon=True)

    async def publish_now(self, subject: str, payload: bytes) -> None:
        """Send, and come back when the server has it."""
        await self._nats.publish(subject, payload)
        await self._nats.flush()

    def started(self, execution: Execution) -> None:
        """`run.started`, once the first claim is committed."""
        run = execution.run
        data = orjson.dumps({"workflow": run.workflow, "session_id": run.session_id, "epoch": run.epoch})
        self._send(run.run_id, render(0, "run.started", run.run_id, run.agent_name, run.started_at, data, self._vault))

    def step_began(self, call: StepCall, attempt: int, started: datetime) -> None:
        """`step.started`, which passes by: at once, or, under load, when the step has lasted for a moment."""
        self._begun[call] = attempt, started
        if len(self._runs) <= AT_LEISURE:
            self._tell_begun()
        else:
            self.outgoing.wake()

    def step_over(self, call: StepCall) -> None:
        """A step that began has ended."""
        self._begun.pop(call, None)

    def _tell_begun(self) -> None:
        begun, self._begun = self._begun, {}
        for call, (attempt, started) in begun.items():
            execution = call.execution
            if execution.closed:
                continue
            data = b'{"index":%d,"name":%s,"path":"%s","attempt":%d}' % (
                self._next_index(execution.run_id),
                orjson.dumps(call.name),
                call.path.encode(),
                attempt,
            )
            run = execution.run
            seq = execution.told_seq
            self._send(run.run_id, render(seq, "step.started", run.run_id, run.agent_name, started, data))

    def _next_index(self, run_id: str) -> int:
        index = self._indexes[run_id] = self._indexes.get(run_id, 0) + 1
        return index

    def passing(self, execution: Execution, kind: str, data: Mapping[str, Any]) -> None:
        """An event that is not journaled."""
        self._tell_begun()
        index = self._next_index(execution.run_id)
        self._send(
            execution.run_id,
            render(
                execution.told_seq,
                kind,
                execution.run_id,
                execution.run.agent_name,
                execution.host.clock.now(),
                orjson.dumps({"index": index, **data}, default=str),
                self._vault,
                index,
            ),
        )

    def committed(self, execution: Execution, row: JournalRow) -> None:
        """The event of a row that is committed."""
        if (payload := row_event(row, execution.run_id, execution.run.agent_name, self._vault)) is not None:
            self._send(execution.run_id, payload)

    def moved(self, execution: Execution, move: Move) -> None:
        """The event of a run's wait or end; an end is also told to whoever asked."""
        run = execution.run
        if move.status == "pending":
            return
        data = end_data(move.output, move.error)
        seq = move.end_seq or execution.last_seq
        now = execution.host.clock.now()
        payload = render(seq, f"run.{move.status}", run.run_id, run.agent_name, now, data, self._vault)
        self._send(run.run_id, payload)
        if move.end_seq is not None or move.status in ("blocked", "needs_review"):
            word = ended_payload(run.run_id, run.agent_name, move, look=self._vault.seals)
            self.publish(subjects.run_ended(run.agent_name, run.run_id), word)

    def forget(self, run_id: str) -> None:
        """The run has left this process."""
        self._indexes.pop(run_id, None)


def ended_payload(run_id: str, agent: str, move: Move, *, look: bool = False) -> bytes:
    """The reply of `run.ask`, as JSON: `status`, `run_id`, `agent`, and `output` or `error`.

    `look` says that they are not in it: whoever waits reads the run's row.
    """
    reply = b'{"status":"%s","run_id":"%s","agent":"%s"' % (move.status.encode(), run_id.encode(), agent.encode())
    if look or max(len(text or "") for text in (move.output, move.error)) > LARGEST_DATA:
        return reply + b',"look":true}'
    if move.output is not None:
        reply += b',"output":' + move.output.encode()
    if move.error is not None:
        reply += b',"error":' + move.error.encode()
    return reply + b"}"


def publish_nowait(nats: Client, subject: str, payload: bytes) -> None:
    """Put a message into the client's outgoing buffer without a task switch.

    nats-py's `publish` is a coroutine that never waits unless its buffer is full; driving it by hand saves the switch.
    """
    coroutine = nats.publish(subject, payload)
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()  # its buffer is full: the event is given up, the journal has it
