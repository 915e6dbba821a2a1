"""A run's events as those of AG-UI. Imported by the first stream of that form alone.

Each event has an id, `SEQ.INDEX.PLACE`, made of the run's own event, so that every gateway gives the same one: for who
comes back the run is read from its beginning again, and told without what he has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final

import orjson
from ag_ui.core import events as ui

from perdure.client.journal import step_event
from perdure.client.types import TERMINAL_EVENTS, RunEvent
from perdure.edge import sse
from perdure.edge.door import Door
from perdure.edge.openai_common import output_text
from perdure.edge.routes_agui import LAST, Place

Shown = Iterator[ui.BaseEvent]
VERSION: Final = "1.0"
_TOOL: Final = "tool:"


async def pieces(door: Door, run: dict[str, Any], after: Place | None) -> sse.Pieces:
    """The events after a place, as pieces of a stream."""
    async with aclosing(_all(door, run)) as shown:
        async for place, event in shown:
            if after is None or place > after:
                yield _piece(place, event)


async def _all(door: Door, run: dict[str, Any]) -> AsyncGenerator[tuple[Place, ui.BaseEvent]]:
    run_id = run["run_id"]
    shown = _Shown(run_id, str(run.get("session_id") or run_id))
    for each in shown.numbered(None, shown.begin()):
        yield each
    end: RunEvent | None = None
    async with aclosing(door.client.run(run_id).events()) as events:
        async for event in events:
            if end is not None:  # the run was brought back from it
                for each in shown.numbered(end, shown.custom(end)):
                    yield each
                end = None
            if event["type"] in TERMINAL_EVENTS:
                end = event
                continue
            whole = await _whole(door, event)
            for each in shown.numbered(event, shown.of(whole)):
                yield each
    if end is not None:
        now = await door.client.run(run_id).details(steps=False)
        for each in shown.numbered(end, shown.end(now)):
            yield each


def _piece(place: Place, event: ui.BaseEvent) -> bytes:
    id_ = ".".join(map(str, place))
    return sse.event(event.model_dump_json(by_alias=True).encode(), id=id_)


async def _whole(door: Door, event: RunEvent) -> RunEvent:
    """An event whose data was too large for a message, from the journal."""
    if event["data"].keys() != {"large"}:
        return event
    run = await door.client.run(event["run_id"]).details(after=event["seq"] - 1)
    return next((step_event(run, step) for step in run["steps"] if step["seq"] == event["seq"]), event)


class _Shown:
    """What was shown of a run so far: which messages, steps and calls are open."""

    def __init__(self, run_id: str, thread_id: str) -> None:
        self._run_id = run_id
        self._thread_id = thread_id
        self._last: tuple[int, int] = (-1, 0)
        self._message: str | None = None
        self._said = ""
        self._answer: str | None = None  # the last message that was said to its end
        self._piece = 0
        self._broken = False
        self._steps: dict[str, str] = {}  # open ones, by their path
        self._calls: dict[str, str] = {}  # tools that were called and have no result yet, by the id of the call
        self._call_of: dict[str, str] = {}  # the call of a step, by its path

    def numbered(self, event: RunEvent | None, said: Shown) -> Iterator[tuple[Place, ui.BaseEvent]]:
        """What is shown of a run's event, each with its place: places rise."""
        seq, index = (0, 0) if event is None else (event["seq"] + 1, 0)
        if event is not None and event["type"] not in TERMINAL_EVENTS:
            given = event["data"].get("index")
            index = given if isinstance(given, int) and given > 0 else 0
        if self._last[0] == seq and index <= self._last[1]:
            index = self._last[1] + 1  # another process counts its passing events anew
        self._last = (seq, index)
        at = None if event is None else int(datetime.fromisoformat(event["time"]).timestamp() * 1000)
        for number, each in enumerate(said):
            each.timestamp = at
            over = each.type in (ui.EventType.RUN_FINISHED, ui.EventType.RUN_ERROR)
            yield (seq, index, LAST if over else number), each

    def begin(self) -> Shown:
        yield ui.RunStartedEvent(thread_id=self._thread_id, run_id=self._run_id, protocol_version=VERSION)

    def of(self, event: RunEvent) -> Shown:
        """One event that is no end."""
        data = event["data"]
        name = str(data.get("name", ""))
        match event["type"]:
            case "run.started":
                return
            case "llm.delta":
                yield from self._delta(event)
            case "tool.started" if "call_id" in data:
                self._call_of[str(data.get("step"))] = str(data["call_id"])
            case "step.started" if name != "model" and not name.startswith(_TOOL):
                yield from self._step_started(data)
            case "step.completed" if name == "model" and isinstance(data.get("result"), dict):
                yield from self._answered(event["seq"], data["result"])
            case "step.completed" | "step.failed" if name.startswith(_TOOL):
                yield from self._tool_result(event["seq"], data)
            case "step.completed" | "step.failed" if name != "model":
                yield from self._step_started(data)
                yield ui.StepFinishedEvent(step_name=self._steps.pop(str(data.get("path"))))
            case _:
                yield from self.custom(event)

    def custom(self, event: RunEvent) -> Shown:
        """What the protocol has no event for: an approval that is asked for, progress, what a workflow emits."""
        yield ui.CustomEvent(name=event["type"], value=event["data"])

    def end(self, run: dict[str, Any]) -> Shown:
        """The end, after everything that was open."""
        output = run.get("output")
        if run["status"] == "completed" and output is not None and output_text(output) != self._answer:
            yield from self._message_whole(f"msg_{self._run_id}_end", output_text(output))
        yield from self._message_end()
        for name in self._steps.values():
            yield ui.StepFinishedEvent(step_name=name)
        about = {"thread_id": self._thread_id, "run_id": self._run_id}
        if run["status"] == "completed":
            yield ui.RunFinishedEvent(**about, result=output, outcome=ui.RunFinishedSuccessOutcome())
        elif run["status"] == "cancelled":
            yield ui.RunFinishedEvent(**about, outcome=ui.RunFinishedCancelledOutcome())
        else:
            error = run.get("error") or {}
            code = str(error.get("type") or run["status"])
            yield ui.RunErrorEvent(message=str(error.get("message") or run["status"]), code=code)

    def _delta(self, event: RunEvent) -> Shown:
        text, piece = event["data"].get("text"), event["data"].get("piece")
        if piece == 0 and isinstance(text, str):
            yield from self._message_end()
            self._message, self._piece, self._broken = f"msg_{self._run_id}_{event['seq']}", 0, False
            yield ui.TextMessageStartEvent(message_id=self._message, role="assistant")
        if event["data"].get("reset") or piece != self._piece or self._broken or self._message is None:
            self._broken = True  # a gap, or an answer that broke off: the step's result says it whole
            return
        self._piece += 1
        self._said += str(text)
        yield ui.TextMessageContentEvent(message_id=self._message, delta=str(text))

    def _answered(self, seq: int, reply: dict[str, Any]) -> Shown:
        """The model's answer, as it was journaled: what is missing of its text, and the tools that it calls."""
        text = str(reply.get("text") or "")
        parent = self._message
        if self._message is not None and text.startswith(self._said):
            if rest := text[len(self._said) :]:
                yield ui.TextMessageContentEvent(message_id=self._message, delta=rest)
            yield from self._message_end()
            self._answer = text
        elif text:
            parent = f"msg_{self._run_id}_{seq}_whole"
            yield from self._message_whole(parent, text)
        for call in reply.get("tool_calls") or ():
            call_id, name = str(call["id"]), str(call["name"])
            self._calls[call_id] = name
            yield ui.ToolCallStartEvent(tool_call_id=call_id, tool_call_name=name, parent_message_id=parent)
            yield ui.ToolCallArgsEvent(tool_call_id=call_id, delta=str(call.get("arguments") or "{}"))
            yield ui.ToolCallEndEvent(tool_call_id=call_id)

    def _tool_result(self, seq: int, data: dict[str, Any]) -> Shown:
        name, path = str(data["name"]).removeprefix(_TOOL), str(data.get("path"))
        call_id = self._call_of.pop(path, None)
        if call_id is None or call_id not in self._calls:
            call_id = next((each for each, called in self._calls.items() if called == name), None)
        if call_id is None:
            return
        del self._calls[call_id]
        result = data.get("result")
        said = result.get("content") if isinstance(result, dict) else (data.get("error") or {}).get("message")
        yield ui.ToolCallResultEvent(message_id=f"tool_{self._run_id}_{seq}", tool_call_id=call_id, content=_text(said))

    def _step_started(self, data: dict[str, Any]) -> Shown:
        path = str(data.get("path"))
        if path in self._steps:
            return
        name = str(data.get("name"))
        self._steps[path] = name if name not in self._steps.values() else f"{name} ({path})"
        yield ui.StepStartedEvent(step_name=self._steps[path])

    def _message_whole(self, message_id: str, text: str) -> Shown:
        yield from self._message_end()
        yield ui.TextMessageStartEvent(message_id=message_id, role="assistant")
        yield ui.TextMessageContentEvent(message_id=message_id, delta=text)
        yield ui.TextMessageEndEvent(message_id=message_id)
        self._answer = text

    def _message_end(self) -> Shown:
        if self._message is not None:
            yield ui.TextMessageEndEvent(message_id=self._message)
        self._message, self._said = None, ""


def _text(said: Any) -> str:
    return said if isinstance(said, str) else orjson.dumps(said).decode()
