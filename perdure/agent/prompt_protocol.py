"""Every agent speaks the Synadia Agent Protocol for NATS 0.3: prompt, status, heartbeat, queries for approvals.

A prompt is a durable run in the session that the subject names. The stream is how the client watches it; when the
client or this process goes away, the run goes on.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

import orjson
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from perdure import subjects
from perdure.agent import approvals, prompt_wire
from perdure.agent.base import BaseAgent, Resources
from perdure.agent.durable import DurableAgent
from perdure.agent.team import Team
from perdure.bus.discovery import Discovery
from perdure.bus.namespace import subject_at
from perdure.engine import runs
from perdure.engine.codec import encode, short_hash
from perdure.engine.rows import TERMINAL
from perdure.errors import ApiError, InvalidRequest, RateLimited, Unavailable
from perdure.messages import RunApprove
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.vault import vault_of

if TYPE_CHECKING:
    from perdure.bus.endpoint import Endpoint

OWNER: Final = "perdure"
SESSION: Final = "default"
MOST_STREAMS: Final = 256
KEEP_ALIVE: Final = 15.0  # seconds of silence before a sign of life
LOOK_AGAIN: Final = 5.0  # seconds after which the run's row is read, whatever was heard
_ID = re.compile(r"[^A-Za-z0-9_-]+")

log = structlog.get_logger()


@dataclass(slots=True)
class _Shown:
    """An endpoint as discovery shows it."""

    name: str
    subject: str
    queue: str
    metadata: dict[str, str]
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_time: int = 0
    data: Any = None


@dataclass(slots=True)
class _Stream:
    """One client that watches one run."""

    reply: str
    run_id: str
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=lambda: asyncio.Queue(10_000))
    sent: str = ""  # of the model call that is being answered
    model_step: str = ""
    asked: set[str] = field(default_factory=set)
    subscriptions: list[Subscription] = field(default_factory=list)


class PromptProtocol:
    """The protocol's endpoints of one agent's process."""

    def __init__(self, agent: BaseAgent, resources: Resources, *, version: str, owner: str = OWNER) -> None:
        self._agent = agent
        self._resources = resources
        self._nats = resources.nats
        self._owner = owner
        self._token = subjects.prompt_token(agent.name)
        self._instance = _ID.sub("-", resources.settings.instance_id)
        place = f"{self._token}.{owner}"
        limit = min(resources.settings.max_payload, self._nats.max_payload)
        metadata = {"max_payload": f"{limit // 1024}KB", "attachments_ok": "true"}
        self._prompt = _Shown("prompt", f"agents.prompt.{place}.{SESSION}", prompt_wire.SERVICE, metadata)
        self._status = _Shown("status", f"agents.status.{place}.{SESSION}", prompt_wire.SERVICE, {})
        self._wild = {"prompt": f"agents.prompt.{place}.*", "status": f"agents.status.{place}.*"}
        self._heartbeat = f"agents.hb.{place}.{SESSION}"
        self._answers = (
            f"agents.{subjects.PROMPT_ANSWER}.{place}"  # no inbox: those are heard and filled by nobody else
        )
        persona = getattr(agent, "persona", None)
        self._discovery = Discovery(
            self._nats,
            name=prompt_wire.SERVICE,
            instance_id=self._instance,
            version=version,
            description=(persona.role if persona is not None else "") or f"the agent {agent.name}",
            metadata=self._metadata,
            endpoints=cast("Iterable[Endpoint]", (self._prompt, self._status)),
        )
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._beat: asyncio.Task[None] | None = None

    def _metadata(self) -> dict[str, str]:
        return {
            "agent": self._token,
            "owner": self._owner,
            "session": SESSION,
            "protocol_version": prompt_wire.PROTOCOL,
            "perdure_agent": self._agent.name,
        }

    async def start(self) -> None:
        """Listen, be found, and show signs of life."""
        for subject, heard in ((self._wild["prompt"], self._heard), (self._wild["status"], self._asked_status)):
            self._subscriptions.append(await self._nats.subscribe(subject, queue=prompt_wire.SERVICE, cb=heard))
        await self._discovery.open()
        self._beat = asyncio.create_task(self._beats(), name=f"heartbeat {self._agent.name}")

    async def stop(self) -> None:
        """Be found no longer. Streams end; their runs go on."""
        await self._discovery.close()
        for subscription in self._subscriptions:
            if self._nats.is_connected:
                await subscription.unsubscribe()
        self._subscriptions.clear()
        tasks = [*self._tasks, *([self._beat] if self._beat else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _beats(self) -> None:
        while True:
            if self._nats.is_connected:
                await self._nats.publish(self._heartbeat, self._alive())
            await asyncio.sleep(prompt_wire.HEARTBEAT_SECONDS)

    def _alive(self) -> bytes:
        return prompt_wire.heartbeat(self._token, self._owner, SESSION, self._instance)

    async def _asked_status(self, message: Msg) -> None:
        self._status.requests += 1
        if message.reply:
            await self._nats.publish(message.reply, self._alive())

    # -- prompts ------------------------------------------------------------------------------------------------------

    async def _heard(self, message: Msg) -> None:
        if not message.reply:
            return  # nobody would see the answer
        self._prompt.requests += 1
        if len(self._tasks) >= MOST_STREAMS:
            await self._fail(message.reply, RateLimited(f"{MOST_STREAMS} prompts are being answered; try again"))
            return
        task = asyncio.create_task(self._answer(message), name=f"prompt {self._agent.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Msg) -> None:
        stream: _Stream | None = None
        try:
            stream = await self._begin(message)
            await self._follow(stream)
        except ApiError as error:
            await self._fail(message.reply, error)
        except (*CONNECTION_ERRORS,) as error:
            log.warning("a prompt was not answered", action="prompt.unavailable", error=type(error).__name__)
            await self._fail(message.reply, Unavailable("the platform cannot take a prompt right now; try again"))
        except Exception:
            log.exception("a prompt failed", action="prompt.failed", agent=self._agent.name)
            await self._fail(message.reply, ApiError("an internal error; the log has it"))
        finally:
            if stream is not None and self._nats.is_connected:
                for subscription in stream.subscriptions:
                    await subscription.unsubscribe()

    async def _fail(self, reply: str, error: ApiError) -> None:
        self._prompt.errors += 1
        self._prompt.last_error = error.message[:300]
        await self._nats.publish(reply, b"", headers=prompt_wire.error_headers(error.http_status, error.message))
        await self._nats.publish(reply, b"")

    async def _begin(self, message: Msg) -> _Stream:
        """Make the prompt a run; its events are heard from the first on."""
        prompt = prompt_wire.read_envelope(message.data)
        session = message.subject.rpartition(".")[2]
        if not subjects.RUN_ID.fullmatch(session):
            raise InvalidRequest(f"session {session!r} must match [A-Za-z0-9_-]{{1,128}}")
        told = (message.headers or {}).get("Nats-Msg-Id")
        run_id = f"p-{short_hash(self._agent.name, session, told)}" if told else subjects.new_run_id()
        stream = _Stream(message.reply, run_id)
        vault = vault_of(self._resources.pool)

        async def event(heard: Msg) -> None:
            opened = await vault.open_event(orjson.loads(heard.data))
            if not stream.events.full():  # a slow client loses tokens; the row has the answer
                stream.events.put_nowait(opened)

        stream.subscriptions.append(await self._nats.subscribe(subjects.run_events(run_id), cb=event))
        await self._nats.publish(message.reply, prompt_wire.status("ack"))
        start = runs.new_start(run_id, self._agent.name, self._task(prompt), session_id=session)
        statuses = await runs.accept(self._resources.pool, [start])
        if statuses[run_id] == "accepted":
            runs.wake(self._nats, run_id, self._agent.name)
        return stream

    def _task(self, prompt: prompt_wire.Prompt) -> Any:
        text = "\n\n".join([prompt.text, *prompt.attachments])
        if isinstance(self._agent, DurableAgent | Team):
            return {"task": text}
        try:
            return orjson.loads(prompt.text)  # a workflow without a model takes JSON
        except orjson.JSONDecodeError:
            return text

    async def _follow(self, stream: _Stream) -> None:
        loop = asyncio.get_running_loop()
        told = looked = loop.time()
        while True:
            try:
                async with asyncio.timeout(min(KEEP_ALIVE, LOOK_AGAIN)):
                    event: dict[str, Any] | None = await stream.events.get()
            except TimeoutError:
                event = None
            if event is not None and await self._tell(stream, event):
                told = loop.time()
            ended = event is not None and event["type"].removeprefix("run.") in TERMINAL
            if ended or loop.time() - looked >= LOOK_AGAIN:
                looked = loop.time()
                run = await runs.get(self._resources.pool, stream.run_id, steps=False)
                if run["status"] in TERMINAL:
                    await self._end(stream, run)
                    return
            if loop.time() - told >= KEEP_ALIVE:
                told = loop.time()
                await self._nats.publish(stream.reply, prompt_wire.status("working"))

    async def _tell(self, stream: _Stream, event: dict[str, Any]) -> bool:
        """Pass an event on in the protocol's words; whether there was something to say."""
        kind, data = event["type"], event["data"]
        if kind == "llm.delta":
            step = f"{data.get('step')}/{data.get('attempt')}"
            if step != stream.model_step:
                stream.model_step, stream.sent = step, ""
            if not data.get("text"):
                return False
            stream.sent += data["text"]
            await self._nats.publish(stream.reply, prompt_wire.response(data["text"]))
            return True
        if kind == "approval.requested" and data["call_id"] not in stream.asked:
            stream.asked.add(data["call_id"])
            await self._ask(stream, data)
            return True
        return False

    async def _end(self, stream: _Stream, run: dict[str, Any]) -> None:
        """What the tokens did not say, then the end; the answer is always whole at the end of the stream."""
        if run["status"] != "completed":
            said = (run.get("error") or {}).get("message", "no reason was recorded")
            error = ApiError(f"run {stream.run_id} ended {run['status']}: {said}")
            await self._fail(stream.reply, error)
            return
        output = run.get("output")
        text = output if isinstance(output, str) else encode(output, what="output")
        rest = text.removeprefix(stream.sent) if text.startswith(stream.sent) else f"\n\n{text}"
        if rest:
            await self._nats.publish(stream.reply, prompt_wire.response(rest))
        await self._nats.publish(stream.reply, b"")

    # -- queries ------------------------------------------------------------------------------------------------------

    async def _ask(self, stream: _Stream, data: dict[str, Any]) -> None:
        """Ask the user about a tool call; whoever decides first, here or elsewhere, has decided."""
        here = f"{self._answers}.{uuid4().hex}"
        call_id, digest = data["call_id"], data["arguments_hash"]

        async def answered(message: Msg) -> None:
            try:
                words = prompt_wire.read_envelope(message.data).text
                yes = prompt_wire.approves(words)
                said = RunApprove(
                    run_id=stream.run_id, call_id=call_id, arguments_hash=digest,
                    decision="approve" if yes else "deny", reason=words[:1000], decided_by="agent protocol",
                )  # fmt: skip
                await approvals.decide(self._resources.pool, self._nats, said)
            except ApiError as error:
                log.info("an answer to a query did not count", action="prompt.query", error=error.message)
            except (*CONNECTION_ERRORS,) as error:
                log.warning("an answer to a query was lost", action="prompt.query", error=type(error).__name__)

        stream.subscriptions.append(await self._nats.subscribe(here, cb=answered))
        await self._nats.flush()
        why = f" ({data['reason']})" if data.get("reason") else ""
        what = f"May I call {data['tool']} with {orjson.dumps(data['arguments']).decode()}{why}? Answer yes or no."
        await self._nats.publish(stream.reply, prompt_wire.query(call_id, subject_at(self._nats, here), what))
