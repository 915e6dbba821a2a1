"""One endpoint of a service: each message is a task, at most `concurrency` at a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import orjson
import structlog
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from perdure import subjects
from perdure.bus.wire import BY_HEADER, error_reply
from perdure.errors import ApiError, ControlFlow, InternalError, InvalidRequest, RateLimited, TooLarge, Unavailable
from perdure.observe import tracing
from perdure.store.actor import actor

LINE: Final = 4096  # requests that wait for a slot
LINE_BYTES: Final = 64 * 1024 * 1024
LONGEST_ACTOR: Final = 200
PATIENCE: Final = 1.0  # seconds that a request waits for a slot before it is refused

if TYPE_CHECKING:
    from perdure.observe.otel import Traces

log = structlog.get_logger()


class Request:
    """One message to an endpoint: `subject`, `data` (bytes), `reply` (subject or empty), `headers`."""

    __slots__ = ("data", "headers", "reply", "subject")

    def __init__(self, subject: str, data: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> None:
        self.subject = subject
        self.data = data
        self.reply = reply
        self.headers: dict[str, str] = headers or {}

    def json(self) -> dict[str, Any]:
        """The body as a JSON object, an empty body as `{}`. Raises `InvalidRequest` saying what is wrong with it."""
        if not self.data:
            return {}
        try:
            body = orjson.loads(self.data)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"the body is not valid JSON: {error}; send a JSON object") from None
        if not isinstance(body, dict):
            raise InvalidRequest(f"the body is a JSON {type(body).__name__}; send a JSON object")
        return body

    @property
    def agent(self) -> str:
        """The agent named by the last token of the subject. Raises `InvalidRequest` when it cannot be a name."""
        try:
            return subjects.agent_name(self.subject.rpartition(".")[2])
        except ValueError as error:
            raise InvalidRequest(f"{error}; correct the last part of the subject {self.subject!r}") from None


Handler = Callable[[Request], Awaitable[Mapping[str, Any] | None]]


class Endpoint:
    """Takes the messages of one subject; counts what ADR-32 wants counted (times are nanoseconds)."""

    def __init__(
        self,
        nc: Client,
        name: str,
        subject: str,
        handler: Handler,
        *,
        queue: str | None,
        concurrency: int,
        patience: float = PATIENCE,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.subject = subject
        self.queue = queue or ""
        self.metadata = dict(metadata or {})
        self.requests = 0
        self.errors = 0
        self.last_error = ""
        self.error_codes: Counter[str] = Counter()
        self.processing_time = 0
        self.handled = 0
        self.traces: Traces | None = None
        self.data: Callable[[], Any] | None = None
        self._nc = nc
        self._handler = handler
        self._concurrency = concurrency
        self._patience = patience
        self._running: set[asyncio.Task[None]] = set()
        self._refusals: set[asyncio.Task[None]] = set()
        self._line: deque[tuple[float, Msg]] = deque()
        self._line_bytes = 0
        self._line_timer: asyncio.TimerHandle | None = None
        self._subscription: Subscription | None = None

    @property
    def open_requests(self) -> int:
        """How many are handled now."""
        return len(self._running)

    @property
    def waiting_requests(self) -> int:
        """How many wait for a place."""
        return len(self._line)

    async def open(self) -> None:
        """Subscribe."""
        self._subscription = await self._nc.subscribe(self.subject, queue=self.queue, cb=self._arrived)

    async def close(self) -> None:
        """Take no further message; what has arrived is still handled."""
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        try:
            await subscription.drain()  # type: ignore[no-untyped-call]
        except nats_errors.Error:
            # Closed or reconnecting: nothing more arrives on it, and the connection is closed next.
            log.debug("an endpoint could not be drained", action="endpoint.not_drained", subject=self.subject)

    async def finish(self, deadline: float) -> None:
        """Wait until `deadline` (loop time) for what runs, then cancel it; each caller gets an answer."""
        loop = asyncio.get_running_loop()
        while self._running and (left := deadline - loop.time()) > 0:
            await asyncio.wait(self._running, timeout=left)
        await self._clear_line()
        late = list(self._running)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, *self._refusals, return_exceptions=True)
        if late:
            log.warning(
                "gave up on requests that were still running", action="endpoint.cut", subject=self.subject, n=len(late)
            )

    # The subscription awaits this one message at a time, so it never waits for a handler.
    async def _arrived(self, msg: Msg) -> None:
        self.requests += 1
        if len(self._running) < self._concurrency:
            self._begin(msg)
        elif len(self._line) < LINE and self._line_bytes + len(msg.data) <= LINE_BYTES:
            self._line.append((asyncio.get_running_loop().time() + self._patience, msg))
            self._line_bytes += len(msg.data)
            self._watch_line()
        else:
            await self._refuse(msg)

    def _begin(self, msg: Msg) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(msg))
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._line and len(self._running) < self._concurrency:
            self._begin(self._leave_line())

    def _leave_line(self) -> Msg:
        msg = self._line.popleft()[1]
        self._line_bytes -= len(msg.data)
        return msg

    def _watch_line(self) -> None:
        if self._line and self._line_timer is None:
            self._line_timer = asyncio.get_running_loop().call_at(self._line[0][0], self._refuse_late)

    def _refuse_late(self) -> None:
        self._line_timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._line and self._line[0][0] <= now:
            task = loop.create_task(self._refuse(self._leave_line()))
            self._refusals.add(task)
            task.add_done_callback(self._refusals.discard)
        self._watch_line()

    async def _clear_line(self) -> None:
        if self._line_timer is not None:
            self._line_timer.cancel()
            self._line_timer = None
        while self._line:
            await self._fail(self._leave_line(), Unavailable("this instance is stopping; ask again"))

    async def _refuse(self, msg: Msg) -> None:
        await self._fail(
            msg,
            RateLimited(f"{self._concurrency} requests to {self.name} are running; ask again later", retry_after=1.0),
        )

    async def _answer(self, msg: Msg) -> None:
        began = time.perf_counter_ns()
        try:
            if msg.headers and (by := msg.headers.get(BY_HEADER)):
                actor.set(by[:LONGEST_ACTOR])  # of this task alone
            request = Request(msg.subject, msg.data, reply=msg.reply, headers=msg.headers)
            if self.traces is None or (header := tracing.told(msg.headers)) is None:
                result = await self._handler(request)
            else:
                said = {"messaging.system": "nats", "messaging.destination.template": self.subject}
                with self.traces.served(self.subject, header, said):
                    result = await self._handler(request)
            if msg.reply:
                await self._reply(msg, orjson.dumps(result if result is not None else {}))
        except ApiError as error:
            await self._fail(msg, error)
        except asyncio.CancelledError:
            await self._fail(msg, Unavailable("this instance stopped before the work was done; ask again"))
            raise
        except (Exception, ControlFlow):
            error_id = uuid4().hex
            text = f"an internal error; the log has it as error_id {error_id}"
            await self._fail(msg, InternalError(text, error_id=error_id))
            log.exception("a handler failed", action="endpoint.handler_failed", subject=msg.subject, error_id=error_id)
        finally:
            self.processing_time += time.perf_counter_ns() - began
            self.handled += 1

    async def _reply(self, msg: Msg, data: bytes) -> None:
        if len(data) > self._nc.max_payload:
            # The server would drop the connection, and with it everybody else's requests.
            raise TooLarge(f"the reply has {len(data)} bytes, and NATS carries {self._nc.max_payload} in one message")
        await self._send(msg, data, None)

    async def _fail(self, msg: Msg, error: ApiError) -> None:
        self.errors += 1
        self.error_codes[error.code] += 1
        self.last_error = f"{error.code}: {error.message}"
        if not msg.reply:
            log.warning(
                "a message could not be handled",
                action="endpoint.message_failed",
                subject=msg.subject,
                code=error.code,
                error=error.message,
            )
            return
        body, headers = error_reply(error)
        try:
            data = orjson.dumps(body)
        except TypeError:
            log.exception("an error has details that are not JSON", action="endpoint.bad_details", code=error.code)
            data = orjson.dumps({"status": "error", "error": {"code": error.code, "message": error.message}})
        await self._send(msg, data, headers)

    async def _send(self, msg: Msg, data: bytes, headers: dict[str, str] | None) -> None:
        try:
            await self._nc.publish(msg.reply, data, headers=headers)
        except nats_errors.Error as error:
            # The caller's deadline tells it; there is nobody to answer.
            log.warning(
                "a reply could not be sent",
                action="endpoint.reply_lost",
                subject=msg.subject,
                error=str(error) or type(error).__name__,
            )
