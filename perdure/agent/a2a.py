"""An agent that answers A2A somewhere else, as a tool.

Each call is one message to it; a repeat of the call (another attempt, another process) is the same message by its id.
What the other side says of itself is not trusted: headers go to the address that was given alone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import aclosing
from importlib import import_module
from typing import Any, Final, cast
from urllib.parse import urlsplit

import orjson
import structlog

from perdure.agent.sources import described_tool, resolve_headers
from perdure.agent.tools import Tool
from perdure.engine import StepContext
from perdure.errors import PermanentError, RetryableError, SetupError

CARD: Final = "/.well-known/agent-card.json"
LARGEST: Final = 1_000_000  # characters of an answer, bytes of a card
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_LAST_WORD: Final = 10.0  # seconds for cancelling a task
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ENDED: Final = {"completed": True, "failed": False, "canceled": False, "rejected": False}
_ASKING: Final = frozenset({"input_required", "auth_required"})
PARAMETERS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "message": {"type": "string", "minLength": 1, "description": "What to tell the agent."},
        "context_id": {"type": "string", "description": "Go on with a conversation: the context_id of its answer."},
        "task_id": {"type": "string", "description": "Answer a task that has asked for something (input_required)."},
    },
    "required": ["message"],
    "additionalProperties": False,
}

log = structlog.get_logger()


class A2aAgent:
    """A remote agent of A2A (1.0 or 0.3) as the tool `name`: `A2aAgent("lawyer", "https://law.example/a2a/lawyer")`.

    `url` is the address up to the agent's card. `headers` may hold `secret://…` references. `timeout` is seconds for
    one call, at whose end the other side goes on; when the run that called is cancelled or terminated, so is the task
    there. The tool gives `{"answer", "state", "context_id", "task_id"}`.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        requires_approval: bool = False,
        timeout: float = 300.0,
        start_timeout: float = 10.0,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"A2A agent {name!r}: a tool's name is 1 to 64 of A-Z, a-z, 0-9, '_' and '-'")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"A2A agent {name!r}: {url!r} is no http(s) address")
        self.name = name
        self._url = url.rstrip("/").removesuffix(CARD)
        self._headers = dict(headers or {})
        self._requires_approval = requires_approval
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._http: Any = None
        self._client: Any = None
        self._library: Any = None
        self._connecting = asyncio.Lock()
        self._tool = self._made(f"Ask the agent {name}.")

    def tools(self) -> Mapping[str, Tool]:
        """The one tool; its description is that of the agent's card, once it was read."""
        return {self.name: self._tool}

    async def start(self) -> None:
        """Read the card; an agent that is away is looked for again by the first call."""
        try:
            async with asyncio.timeout(self._start_timeout):
                await self._connected()
        except (RetryableError, PermanentError, TimeoutError) as error:
            log.warning("A2A agent is away", action="a2a.away", agent=self.name, error=str(error) or "no answer")

    async def stop(self) -> None:
        """Close the connections."""
        http, self._http, self._client = self._http, None, None
        if http is not None:
            await http.aclose()

    def _made(self, description: str) -> Tool:
        return described_tool(
            self.name,
            description,
            PARAMETERS,
            self._call,
            requires_approval=self._requires_approval,
            timeout=self._timeout + 5,
        )

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> Any:
        httpx = await asyncio.to_thread(import_module, "httpx")
        self._library = await asyncio.to_thread(import_module, "a2a.client")
        resolver = await asyncio.to_thread(import_module, "a2a.client.card_resolver")
        try:
            headers = await resolve_headers(self._headers)
        except SetupError as error:
            raise PermanentError(f"agent {self.name!r}: {error}") from error
        if self._http is None:  # in a thread: it reads the trust store
            limits = httpx.Timeout(30.0, read=self._timeout)
            self._http = await asyncio.to_thread(
                lambda: httpx.AsyncClient(headers=headers, timeout=limits, follow_redirects=False)
            )
        try:
            card = resolver.parse_agent_card(orjson.loads(await self._card()))
        except httpx.HTTPError as error:
            raise RetryableError(f"agent {self.name!r} cannot be reached ({type(error).__name__})") from error
        except (ValueError, resolver.ParseError) as error:
            raise PermanentError(f"agent {self.name!r} has a card that cannot be read") from error
        own = [each for each in card.supported_interfaces if _origin(each.url) == _origin(self._url)]
        if not own:
            raise PermanentError(f"agent {self.name!r} has a card that names no address at {_origin(self._url)}")
        del card.supported_interfaces[:]
        card.supported_interfaces.extend(own)
        config = self._library.ClientConfig(
            httpx_client=self._http, streaming=card.capabilities.streaming, polling=not card.capabilities.streaming
        )
        try:
            client = self._library.ClientFactory(config).create(card)
        except ValueError as error:
            raise PermanentError(f"agent {self.name!r} speaks no form of A2A that is known here: {error}") from error
        self._tool = self._made(f"Ask the agent {self.name}. {card.description}".strip())
        log.info("A2A agent found", action="a2a.found", agent=self.name, url=self._url)
        return client

    async def _card(self) -> bytes:
        """What stands at the card's address; no more of it is read than a card may have."""
        found = bytearray()
        async with self._http.stream("GET", f"{self._url}{CARD}", timeout=30.0) as answer:
            if answer.status_code != 200:
                raise RetryableError(f"agent {self.name!r} gives no card: it answered {answer.status_code}")
            async for piece in answer.aiter_bytes():
                found += piece
                if len(found) > LARGEST:
                    raise PermanentError(f"agent {self.name!r} gives a card of more than {LARGEST} bytes")
        return bytes(found)

    async def _call(self, arguments: dict[str, Any], step: StepContext) -> dict[str, Any]:
        client = await self._connected()
        types = import_module("a2a.types")
        errors = import_module("a2a.utils.errors")
        told = _Told(step)
        request = types.SendMessageRequest(
            message=types.Message(
                message_id=step.idempotency_key,
                role=types.Role.ROLE_USER,
                parts=[types.Part(text=arguments["message"])],
                context_id=arguments.get("context_id"),
                task_id=arguments.get("task_id"),
            )
        )
        listening = asyncio.ensure_future(_listen(client, request, told))
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    await asyncio.shield(listening)
                except errors.A2AError as error:
                    self._broken(error, told)
                await self._until_ended(client, told, errors)
        except asyncio.CancelledError:
            if not told.over and (step.unwanted or await step.run_has_ended()):
                if not told.task_id:  # the message is on its way: what it begins there is known by its first answer
                    await asyncio.wait((listening, told.named), timeout=_LAST_WORD, return_when=asyncio.FIRST_COMPLETED)
                if told.task_id and not told.over:
                    await self._cancel(client, told.task_id)
            raise
        except TimeoutError:
            raise PermanentError(
                f"agent {self.name!r} has not answered within {self._timeout:g} s; task {told.task_id!r} goes on there"
            ) from None
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        return told.result(self.name)

    async def _cancel(self, client: Any, task_id: str) -> None:
        """Ask the other side to end a task that nobody waits for any more; it is asked once."""
        types = import_module("a2a.types")
        errors = import_module("a2a.utils.errors")
        try:
            async with asyncio.timeout(_LAST_WORD):
                await client.cancel_task(types.CancelTaskRequest(id=task_id))
        except (errors.A2AError, TimeoutError) as error:
            log.warning(
                "a task was not cancelled", action="a2a.not_cancelled", agent=self.name, task=task_id, error=str(error)
            )
        else:
            log.info("a task was cancelled", action="a2a.cancelled", agent=self.name, task=task_id)

    def _broken(self, error: Any, told: _Told) -> None:
        """An error in the middle: a task that is known is looked at; else the error says whether to try again."""
        self._client = None  # read its card anew with the next call
        if told.task_id:
            return
        cause = error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        data = getattr(error, "data", None)
        code = data.get("code") if isinstance(data, dict) else None
        kind = type(cause).__name__
        if status in (429, 502, 503) or code in ("rate_limited", "unavailable") or kind.startswith("Connect"):
            raise RetryableError(f"agent {self.name!r} cannot be reached ({status or code or kind})") from error
        if status is not None:
            raise PermanentError(f"agent {self.name!r} answered {status}") from error
        if cause is not None and type(cause).__module__.startswith("httpx"):
            raise PermanentError(f"agent {self.name!r} broke off ({kind}); it may have done its work") from error
        raise PermanentError(f"agent {self.name!r}: {error}"[:1000]) from error

    async def _until_ended(self, client: Any, told: _Told, errors: Any) -> None:
        """Look at the task until it is over."""
        types = import_module("a2a.types")
        pause = _FIRST_PAUSE
        if not told.over and not told.task_id:
            raise PermanentError(f"agent {self.name!r} gave no answer; it may have done its work")
        while not told.over:
            try:
                told.take(await client.get_task(types.GetTaskRequest(id=told.task_id)))
            except errors.TaskNotFoundError as error:
                raise PermanentError(f"agent {self.name!r} does not know its task {told.task_id!r} any more") from error
            except errors.A2AError as error:
                log.info("A2A agent is away", action="a2a.away", agent=self.name, error=str(error)[:200])
            if not told.over:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)


async def _listen(client: Any, request: Any, told: _Told) -> None:
    """Send the message, and hear what is said of it as long as the other side speaks."""
    async with aclosing(client.send_message(request)) as events:
        async for event in events:
            told.hear(event)


class _Told:
    """What the other side has said of one message."""

    def __init__(self, step: StepContext) -> None:
        self._step = step
        self.task_id = ""
        self.named: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # set with the task's id
        self._context_id = ""
        self._state = ""
        self._said = ""  # with the state
        self._artifacts: dict[str, list[Any]] = {}
        self._size = 0

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self._state in _ENDED or self._state in _ASKING

    def hear(self, event: Any) -> None:
        """One event of a stream."""
        self._hear(event)
        if (self.task_id or self.over) and not self.named.done():
            self.named.set_result(None)

    def _hear(self, event: Any) -> None:
        kind = event.WhichOneof("payload")
        if kind == "task":
            self.take(event.task)
        elif kind == "message":
            self._context_id, self._state = event.message.context_id, "completed"
            self._artifacts = {"message": list(event.message.parts)}
        elif kind == "status_update":
            self._at(event.status_update)
        elif kind == "artifact_update":
            self._ids(event.artifact_update)
            self._keep(event.artifact_update.artifact, more=event.artifact_update.append)

    def take(self, task: Any) -> None:
        """The task as a whole."""
        self._ids(task)
        self.task_id = task.id
        self._status(task.status)
        for each in task.artifacts:
            self._keep(each, more=False)

    def _at(self, update: Any) -> None:
        self._ids(update)
        self._status(update.status)

    def _ids(self, said: Any) -> None:
        self.task_id = getattr(said, "task_id", "") or self.task_id
        self._context_id = said.context_id or self._context_id

    def _status(self, status: Any) -> None:
        types = import_module("a2a.types")
        self._state = cast("str", types.TaskState.Name(status.state)).removeprefix("TASK_STATE_").lower()
        text = _text(status.message.parts)
        if text:
            self._said = text
            if not self.over:
                self._step.delta("tool.progress", {"fraction": 0.0, "text": text[:1000]})

    def _keep(self, artifact: Any, *, more: bool) -> None:
        self._size += artifact.ByteSize()
        if self._size > 4 * LARGEST:
            raise PermanentError("the answer is too large")
        kept = self._artifacts.setdefault(artifact.artifact_id, [])
        if not more:
            kept.clear()
        kept.extend(artifact.parts)

    def result(self, name: str) -> dict[str, Any]:
        """What the model reads. Raises `PermanentError` when the task has failed."""
        answer = "\n".join(filter(None, (_text(parts) for parts in self._artifacts.values())))
        if self._state in _ENDED and not _ENDED[self._state]:
            raise PermanentError(f"agent {name!r}: its task is {self._state}: {self._said or answer or 'no reason'}")
        said = {"answer": (answer or self._said)[:LARGEST], "state": self._state, "context_id": self._context_id}
        return said if self._state == "completed" else {**said, "task_id": self.task_id}


def _text(parts: Any) -> str:
    """What the model reads of parts: text as it is, data as JSON; other kinds are only named."""
    json_format = import_module("google.protobuf.json_format")
    said = []
    for part in parts:
        kind = part.WhichOneof("content")
        if kind == "text":
            said.append(part.text)
        elif kind == "data":
            said.append(orjson.dumps(json_format.MessageToDict(part.data)).decode())
        else:
            said.append(f"[{part.filename or kind}]")
    return "\n".join(said)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{port or (443 if parts.scheme == 'https' else 80)}"
