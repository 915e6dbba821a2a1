"""What the two OpenAI protocols share: reading messages, starting runs, putting answers together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from perdure.agent.handoff import CONTEXT
from perdure.agent.registry import alive
from perdure.client.handle import RunHandle
from perdure.edge.callers import Caller
from perdure.edge.door import Door
from perdure.edge.replies import named, run_id_of
from perdure.errors import InvalidRequest, NotFound, RunFailed
from perdure.subjects import new_run_id

PATIENCE: Final = 600.0  # seconds that an answer is waited for: what the official clients wait
PREFIX: Final = "perdure/"
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})


async def agent_of(door: Door, caller: Caller, model: str) -> str:
    """The agent that a model's name means. Raises `NotFound` when no process of it is up, `Forbidden`."""
    agent = door.agent(caller, named(model.removeprefix(PREFIX)))
    if not await alive(door.pool, [agent]):
        raise NotFound(
            f"there is no model {model!r}: no process of agent {agent} is up; /v1/models lists those that are"
        )
    return agent


def text_of(content: Any, where: str) -> str:
    """The text of a message's content. Raises `InvalidRequest` for what is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidRequest(f"field '{where}': a text, or a list of parts", fields=[where])
    texts = []
    for at, part in enumerate(content):
        if (
            not isinstance(part, Mapping)
            or part.get("type") not in _TEXT_PARTS
            or not isinstance(part.get("text"), str)
        ):
            raise InvalidRequest(f"field '{where}.{at}': agents take text alone", fields=[f"{where}.{at}"])
        texts.append(part["text"])
    return "".join(texts)


def read_messages(messages: Sequence[Any], field: str) -> tuple[str, str]:
    """(the newest message of the user, what was said before it). Raises `InvalidRequest` naming the message."""
    said: list[tuple[str, str]] = []
    for at, each in enumerate(messages):
        where = f"{field}.{at}"
        if not isinstance(each, Mapping):
            raise InvalidRequest(f"field '{where}': an object with role and content", fields=[where])
        if each.get("type", "message") != "message" or not isinstance(each.get("role"), str):
            continue  # tool calls and their outputs, reasoning: steps of whoever asks, not of the agent
        said.append((each["role"], text_of(each.get("content"), f"{where}.content")))
    if not said or said[-1][0] != "user" or not said[-1][1].strip():
        raise InvalidRequest(f"field '{field}': the last message must be a user's, with a text", fields=[field])
    before = "\n".join(f"{role}: {text}" for role, text in said[:-1] if text)
    return said[-1][1], before


async def start(
    door: Door, caller: Caller, agent: str, prompt: str, before: str, *, session: str | None, key: str | None
) -> tuple[RunHandle, str]:
    """A run for a prompt, and its session. In a conversation that is kept here, what came before is known already."""
    run_id = caller.own(run_id_of(key, None, agent) or new_run_id())
    task: Any = prompt if session is not None or not before else {"task": prompt, CONTEXT: before}
    whole = session or run_id
    return await door.client.start(agent, task, run_id=run_id, session_id=whole), whole


async def finished(run: RunHandle, seconds: float = PATIENCE) -> dict[str, Any]:
    """The run with its steps, once it is completed. Raises `RunFailed`, `TimeoutError`."""
    ended = await run.ended(seconds)
    if ended["status"] != "completed":
        raise RunFailed(run.run_id, ended["status"], ended.get("error"))
    return await run.details()


def output_text(output: Any) -> str:
    """A run's output as text: a structured one as JSON."""
    return output if isinstance(output, str) else orjson.dumps(output).decode()


def tokens(run: Mapping[str, Any]) -> tuple[int, int]:
    """(tokens read, tokens written) by the model calls of a run, as its journal has them."""
    read = written = 0
    for step in run.get("steps") or ():
        result = step.get("result")
        if step["kind"] == "step" and step["name"] == "model" and isinstance(result, Mapping):
            read += _whole(result.get("input_tokens"))
            written += _whole(result.get("output_tokens"))
    return read, written


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


class Spoken:
    """The text of a stream so far, and what is left to say at its end.

    Pieces are numbered from 0 for each answer of the model. After a gap, or when an answer broke off, no further piece
    of it goes out: the end says it whole.
    """

    def __init__(self) -> None:
        self.said = ""
        self._part = ""
        self._next = 0
        self._broken = False

    def delta(self, data: Mapping[str, Any]) -> str:
        """What an `llm.delta` adds."""
        piece, text = data.get("piece"), data.get("text")
        if data.get("reset") or not isinstance(text, str):
            self._broken = True
            return ""
        apart = ""
        if piece == 0:
            apart = "\n\n" if self.said else ""
            self._part, self._next, self._broken = "", 0, False
        if self._broken or piece != self._next:
            self._broken = True
            return ""
        self._next += 1
        self._part += text
        self.said += apart + text
        return apart + text

    def rest(self, output: str) -> str:
        """What is missing of the final answer."""
        if self._part and output.startswith(self._part):
            missing = output[len(self._part) :]
        else:
            missing = ("\n\n" if self.said else "") + output
        self.said += missing
        return missing
