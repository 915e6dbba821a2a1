"""Conversations: append-only rows in Postgres, written in the transactions of journal rows, cached by seq."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from perdure.agent.kept import message_spot, opened, result_spots, sealed, summary_spot, unsealed
from perdure.engine.at_once import NO_ROW, Columns
from perdure.errors import PermanentError
from perdure.llm.types import Message
from perdure.store.postgres import Connection, Pool
from perdure.store.queries import load_queries

SENT: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
"""What of a stored message the model is sent; the rest (why it stopped, …) is for people."""
INJECTED: Final = "_end"
"""How the id of a call that the platform put into the conversation ends."""
_CACHE_CHARS: Final = 32_000_000

_SQL = load_queries("sessions.sql")


def dump(message: Message) -> str:
    """A message as its row holds it."""
    return orjson.dumps(message).decode()


def pair(call_id: str, tool: str, arguments: str, content: dict[str, Any]) -> list[Message]:
    """A finished background call as the model reads it: a call of its own, and its result."""
    identity = f"{call_id}{INJECTED}"
    call = {"id": identity, "type": "function", "function": {"name": tool, "arguments": arguments}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": identity, "content": orjson.dumps(content).decode()},
    ]


def window(messages: Sequence[Message]) -> list[Message]:
    """`messages` as a model takes them: no result without its call at the beginning, no fields of our own."""
    start = 0
    while start < len(messages) and messages[start].get("role") == "tool":
        start += 1
    return [{key: value for key, value in one.items() if key in SENT} for one in messages[start:]]


@dataclass(frozen=True, slots=True)
class Opened:
    """A turn that has begun: messages `first` to `upto` count, `notes` say what is still at work in the background.

    `busy` is another run whose turn is open: this one has not begun. `taken` are the calls whose results came in,
    `tokens` and `cost` what the conversation has cost before, `summary` stands for the messages up to `summary_upto`,
    `born` tells this conversation from an earlier one of the same id.
    """

    first: int = 0
    upto: int = 0
    busy: str | None = None
    taken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tokens: int = 0
    cost: float = 0.0
    summary: str | None = None
    summary_upto: int = 0
    born: int = 0


class Appended(NamedTuple):
    """The seq of the first message that was appended; whether others wait for the run that ended with it, if it did."""

    first: int
    joined: bool | None


@dataclass(slots=True)
class _Cached:
    first: int
    messages: list[Message]
    chars: int

    @property
    def next(self) -> int:
        return self.first + len(self.messages)


def _ended(record: Any) -> tuple[str, str] | None:
    """`(status, result)` of a background call that is over; a child that ended without a word has failed."""
    if record["status"] != "scheduled":
        return record["status"], record["result"]
    if record["run_status"] in {"failed", "cancelled", "dead"}:
        said = orjson.loads(record["run_error"] or "{}").get("message")
        return "failed", said or f"the work ended {record['run_status']}"
    return None


def _told(status: str, result: str) -> dict[str, Any]:
    """What a finished call says: its result as it is, an error as an object."""
    if status == "completed":
        return {"result": result}
    try:
        error = orjson.loads(result)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        error = {"type": "Error", "message": result}
    return {"error": error}


def _note(record: Any) -> str:
    state = record["run_status"] or "pending"
    parts = [f"Background work: {record['tool']} (call {record['call_id']}) with {record['arguments']} is {state}"]
    if record["progress"]:
        parts.append(record["progress"])
    if record["last_kind"] == "retry" and record["last_due"] is not None:
        due = record["last_due"].strftime("%H:%M:%S")
        parts.append(f"attempt {record['last_attempt']} of {record['last_step']} failed, the next one is at {due} UTC")
    return ", ".join(parts)


class Sessions:
    """The conversations of one agent. Every write takes the connection of a transaction that journals too."""

    def __init__(self, agent_name: str) -> None:
        self._agent = agent_name
        self._cache: OrderedDict[tuple[str, int], _Cached] = OrderedDict()
        self._chars = 0

    async def open_at_once(
        self, connection: Connection, session: str, run_id: str, prompt: Any, columns: Columns
    ) -> str | None:
        """The same as `open_turn` with the row that `columns` begin, in one statement: the row's result.

        None, and no row, when there is more to do than one statement can: then `open_turn` does it all.
        """
        said = [] if prompt is None else [dump({"role": "user", "content": prompt})]
        found = await connection.fetchrow(_SQL["open_turn"], self._agent, session, run_id, said, *columns)
        assert found is not None  # noqa: S101  (INSERT … DO UPDATE always returns its row)
        row: str | None = found["row"]
        return row

    async def open_turn(self, connection: Connection, session: str, run_id: str, prompt: Any) -> Opened:
        """Begin a turn: take in finished background results, then the user's message (`None`: there is none)."""
        said: list[Message] = [] if prompt is None else [{"role": "user", "content": prompt}]
        stored = [await sealed(connection, dump(message), message_spot(self._agent, session)) for message in said]
        row = await connection.fetchrow(_SQL["open_turn"], self._agent, session, run_id, stored, *NO_ROW[:-2])
        assert row is not None  # noqa: S101  (INSERT … DO UPDATE always returns its row)
        if row["turn_run_id"] != run_id:
            return Opened(busy=row["turn_run_id"])
        taken: list[str] = []
        notes: list[str] = []
        upto = row["next_seq"] - 1
        if not row["appended"]:
            messages, taken, notes = await self._results(connection, session, row["next_seq"])
            messages += said
            if messages:
                await self.append(connection, session, run_id, [dump(one) for one in messages], close=False)
            upto += len(messages)
        summary = row["summary"] if row["summary_upto"] >= row["first_seq"] else None
        if summary is not None:
            summary = await unsealed(connection, summary, summary_spot(self._agent, session))
        return Opened(
            row["first_seq"], upto, None, taken, notes, row["tokens"], row["cost"], summary,
            row["summary_upto"], row["born"],
        )  # fmt: skip

    async def _results(
        self, connection: Connection, session: str, seq: int
    ) -> tuple[list[Message], list[str], list[str]]:
        messages: list[Message] = []
        taken: list[str] = []
        notes: list[str] = []
        records = await connection.fetch(_SQL["open_results"], self._agent, session)
        for record in await opened(connection, records, result_spots(session)):
            ended = _ended(record)
            if ended is None:
                notes.append(_note(record))
                continue
            content = {"call_id": record["call_id"], "status": ended[0], **_told(*ended)}
            messages += pair(record["call_id"], record["tool"], record["arguments"], content)
            taken.append(record["call_id"])
        if taken:
            await connection.execute(_SQL["take_results"], self._agent, session, seq, taken)
        return messages, taken, notes

    async def append(
        self,
        connection: Connection,
        session: str,
        run_id: str,
        messages: list[str],
        *,
        close: bool,
        cost: tuple[int, int, float] = (0, 0, 0.0),
        columns: Columns = NO_ROW,
    ) -> Appended:
        """Append messages (JSON texts) and say at which seq the first of them stands; `close` ends the turn.

        `cost` is what they cost: tokens read, tokens written, money. `columns` are a step's row, to be written with it,
        and the output of the run, if it ends with that.

        Raises `PermanentError` when the turn is not this run's: nothing is written.
        """
        spot = message_spot(self._agent, session)
        stored = [await sealed(connection, message, spot) for message in messages]
        found = await connection.fetchrow(
            _SQL["append_messages"], self._agent, session, run_id, stored, close, *cost, *columns
        )
        if found is None:
            raise PermanentError(f"session {session} is not in a turn of run {run_id}: nothing was appended")
        return Appended(found["first"], found["joined"])

    async def read(self, pool: Pool, session: str, born: int, first: int, upto: int, most: int) -> list[Message]:
        """The last `most` messages of `first` to `upto`, from memory where they are there."""
        wanted = max(first, upto - most + 1)
        if wanted > upto:
            return []
        key = (session, born)
        kept = self._cache.get(key)
        if kept is not None and kept.first <= wanted and kept.next > upto:
            self._cache.move_to_end(key)
            return kept.messages[wanted - kept.first : upto + 1 - kept.first]
        records = await pool.fetch(_SQL["read_messages"], self._agent, session, wanted, upto)
        spot = message_spot(self._agent, session)
        messages = [orjson.loads(await unsealed(pool, record["message"], spot)) for record in records]
        if records and records[-1]["seq"] - records[0]["seq"] == len(records) - 1:
            self._keep(key, _Cached(records[0]["seq"], list(messages), sum(len(r["message"]) for r in records)))
        return messages

    def remember(self, session: str, born: int, first: int, messages: Sequence[Message]) -> None:
        """Messages that were appended at `first`; a row never changes, so that what is cached stays right."""
        key = (session, born)
        kept = self._cache.get(key)
        if kept is None and first == 1:
            kept = _Cached(1, [], 0)
        if kept is None or kept.next != first:
            return
        kept.messages.extend(messages)
        added = sum(len(str(one.get("content") or "")) + 100 for one in messages)
        self._keep(key, _Cached(kept.first, kept.messages, kept.chars + added))

    def _keep(self, key: tuple[str, int], kept: _Cached) -> None:
        before = self._cache.pop(key, None)
        self._chars += kept.chars - (before.chars if before else 0)
        self._cache[key] = kept
        while self._chars > _CACHE_CHARS and self._cache:
            _, dropped = self._cache.popitem(last=False)
            self._chars -= dropped.chars
