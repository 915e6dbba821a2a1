"""The workflow's side of the engine: `ctx`."""

from __future__ import annotations

import random as random_module
import uuid as uuid_module
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from perdure.engine.codec import encode, identity
from perdure.engine.context_children import ChildContext
from perdure.engine.context_parallel import ParallelContext
from perdure.engine.definition import StepInjected
from perdure.engine.failure import too_large
from perdure.engine.points import reach
from perdure.engine.retry import Retry
from perdure.engine.rows import JournalRow
from perdure.engine.steps import StepCall, TransactionCall
from perdure.engine.undo import Undo
from perdure.engine.values import Now, Random, Uuid
from perdure.engine.waits import (
    AdoptCall,
    RecordCall,
    SignalCall,
    SleepCall,
    SleepUntilCall,
    moment_of,
    one_line,
    seconds_of,
)
from perdure.errors import RunContinued, WorkflowMisuse

if TYPE_CHECKING:
    from perdure.config.snapshot import AgentConfig
    from perdure.engine.execution import Execution

T = TypeVar("T")
Duration = float | int | timedelta
PLATFORMS_EVENTS: Final = ("run.", "step.")  # how the types of events begin that say what becomes of a run


class Context(ChildContext, ParallelContext, StepInjected):
    """What a workflow may do that outlives its process.

    Everything that is awaited here is journaled: after a crash the code runs again from its beginning, and what has an
    outcome in the journal is not done again. So a workflow's code must do the same each time: time, chance and the
    outside world come from `ctx` and from steps.
    """

    __slots__ = ("_execution",)

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    # -- what the run is ----------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The id of this run."""
        return self._execution.run_id

    @property
    def agent_name(self) -> str:
        """The agent that runs it."""
        return self._execution.run.agent_name

    @property
    def workflow(self) -> str:
        """The name of its workflow."""
        return self._execution.run.workflow

    @property
    def session_id(self) -> str | None:
        """The session it belongs to, if any."""
        return self._execution.run.session_id

    @property
    def attempt(self) -> int:
        """How many times the run was claimed since its last journal row."""
        return self._execution.run.attempts

    @property
    def config(self) -> AgentConfig:
        """The configuration this run stands on; it changes only by `adopt_config`."""
        return self._execution.config

    # -- steps --------------------------------------------------------------------------------------------------------

    @overload
    def step(
        self,
        name: str,
        fn: Callable[..., Coroutine[Any, Any, T]],
        *args: Any,
        retry: Retry | None = ...,
        timeout: Duration | None = ...,
        **kwargs: Any,
    ) -> Awaitable[T]: ...
    @overload
    def step(
        self,
        name: str,
        fn: Callable[..., T],
        *args: Any,
        retry: Retry | None = ...,
        timeout: Duration | None = ...,
        **kwargs: Any,
    ) -> Awaitable[T]: ...
    def step(
        self,
        name: str,
        fn: Callable[..., Any],
        *args: Any,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Awaitable[Any]:
        """Run `fn(*args, **kwargs)` and journal its result; on replay the journaled result is returned.

        `fn` runs at least once, its outcome is recorded once. A plain function runs in a thread. Every `Exception` is
        tried again as `retry` says (three attempts by default), except `PermanentError`. `timeout` bounds one attempt.
        Awaiting raises `StepFailed` when the attempts are used up, now and on replay, and `TypeError` for a result that
        cannot travel as JSON. Names may repeat.
        """
        name = one_line(name, what="a step's name")
        execution = self._execution
        if not callable(fn):
            raise TypeError(f"step {name!r} takes a function; give {type(fn).__name__}'s function, not its result")
        return StepCall(
            execution,
            execution.line(),
            name,
            identity(name, args, kwargs),
            fn,
            args,
            kwargs,
            retry,
            None if timeout is None else seconds_of(timeout, what=f"timeout of step {name!r}"),
        )

    def transaction(
        self,
        name: str,
        fn: Callable[..., Awaitable[T]],
        *args: Any,
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> Awaitable[T]:
        """Run `fn(connection, *args)` in a transaction of Perdure's own database that also writes the journal row.

        `connection` is an asyncpg connection. What the function writes and the step's outcome commit together or not
        at all: this is the one kind of effect that happens once without an idempotency key.
        """
        name = one_line(name, what="a transaction's name")
        execution = self._execution
        return TransactionCall(
            execution,
            execution.branch(),
            name,
            identity(name, args, {}),
            fn,
            args,
            {},
            retry,
            None if timeout is None else seconds_of(timeout, what=f"timeout of transaction {name!r}"),
        )

    def on_failure(
        self,
        undo: Callable[..., Any],
        *args: Any,
        name: str | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> None:
        """If this run fails or is cancelled, run `undo(*args, **kwargs)`: the last registered first, each as a step.

        Registered after the step that it takes back, or before it, if that may have had its effect and failed all the
        same. An undo runs at least once: it should bear to find nothing to undo. One that uses up its attempts stops
        the undoing; the run ends `failed` and its error names what was `undone` and what `not_undone`;
        `run.resume` tries on from there. `run.terminate`, and the end as `dead`, undo nothing.
        """
        title = one_line(name or getattr(undo, "__name__", "undo"), what="the name of an undo")
        if not callable(undo):
            raise TypeError(f"ctx.on_failure takes a function and its arguments, not {type(undo).__name__}")
        execution = self._execution
        digest = identity(title, args, kwargs)
        call = RecordCall(execution, execution.branch(), "on_failure", title, digest, change=lambda _value: None)
        bound = None if timeout is None else seconds_of(timeout, what=f"timeout of undo {title!r}")
        execution.undos.append(Undo(call.path, title, digest, undo, args, kwargs, retry, bound))
        call.begin()

    # -- waits --------------------------------------------------------------------------------------------------------

    def sleep(self, name: str | Duration, seconds: Duration | None = None) -> Awaitable[None]:
        """Wait, over restarts, holding no memory: `await ctx.sleep("cool-off", 30)`; the name may be left out."""
        if isinstance(name, str) and seconds is None:
            raise TypeError("ctx.sleep takes a name and a duration: ctx.sleep('cool-off', 30)")
        title = one_line(name, what="a sleep's name") if isinstance(name, str) else "sleep"
        wait = seconds_of(name if seconds is None else seconds, what="the duration of ctx.sleep")
        execution = self._execution
        return SleepCall(execution, execution.branch(), title, identity(title, (wait,), {}), wait)

    def sleep_until(self, name: str | datetime, moment: datetime | None = None) -> Awaitable[None]:
        """Wait until `moment`, an aware datetime; at once when it is past. The name may be left out.

        `moment` must be the same on replay: from `ctx.now()`, the task or a step, not from the machine's clock. Raises
        `ValueError` for a datetime without a time zone.
        """
        title = one_line(name, what="a sleep's name") if isinstance(name, str) else "sleep"
        until = moment_of(name if moment is None else moment, what="the moment of ctx.sleep_until")
        execution = self._execution
        return SleepUntilCall(execution, execution.branch(), title, identity(title, (until.isoformat(),), {}), until)

    def wait_signal(self, name: str, timeout: Duration | None = None) -> Awaitable[Any]:
        """The payload of the next signal `name`, first in, first out; one sent before the wait counts.

        Raises `TimeoutError` when none came within `timeout` (journaled: it stays so on replay).
        """
        name = one_line(name, what="a signal's name")
        wait = None if timeout is None else seconds_of(timeout, what=f"timeout of signal {name!r}")
        execution = self._execution
        return SignalCall(execution, execution.branch(), name, identity(name, (wait,), {}), wait)

    def _refuse_large(self, what: str, text: str) -> None:
        refused = too_large(what, text, self._execution.host.settings.max_payload)
        if refused is not None:
            raise refused

    # -- configuration ------------------------------------------------------------------------------------------------

    def adopt_config(self) -> Awaitable[AgentConfig]:
        """Stand on the newest configuration from here on; journaled, so that a replay stands on the same."""
        execution = self._execution
        return AdoptCall(execution, execution.branch())

    # -- time and chance ----------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The time in UTC, as of the last outcome the workflow has seen: the same on replay."""
        self._execution.branch()
        return Now.of(self._execution.time)

    def uuid(self) -> uuid_module.UUID:
        """A UUID, the same on replay."""
        return Uuid(bytes=self._seed("uuid", 16), version=4)

    def random(self) -> float:
        """A number from 0 up to 1, the same on replay."""
        return Random(random_module.Random(self._seed("random", 16)).random())  # noqa: S311 -- not for secrets

    def _seed(self, what: str, size: int) -> bytes:
        branch = self._execution.branch()
        run = self._execution.run
        text = f"{self._execution.seed}\x1f{run.base_seq}\x1f{branch.take()}\x1f{what}"
        return blake2b(text.encode(), digest_size=size).digest()

    def patched(self, name: str) -> bool:
        """Whether this run takes the new way at a change of the code.

        `True` for runs that come here for the first time after the change, `False` for those that went the old way;
        keyed by name, so it moves no positions.
        """
        name = one_line(name, what="the name of ctx.patched")
        execution = self._execution
        execution.branch()
        if name in execution.patches:
            return True
        if execution.replaying:
            return False
        reach("patch.before", execution.run_id, name)
        execution.patches.add(name)
        now = execution.host.clock.now()
        row = JournalRow(
            seq=execution.next_seq(), path=f"patch:{name}", kind="patch", name=name, hash="", outcome="ok",
            result=None, error=None, attempt=1, due_at=None, signal_seq=None,
            config_revision=execution.config.revision, started_at=now, finished_at=now,
        )  # fmt: skip
        execution.unwritten_patches[row.seq] = row
        execution.write(row)
        return True

    # -- telling ------------------------------------------------------------------------------------------------------

    def emit(self, event: Mapping[str, Any], *, type: str = "event") -> Awaitable[None]:  # noqa: A002 -- the event's word
        """Send a durable event of this run: `type` and `event` as its data, in journal order, replayable.

        Raises `TypeError` for what is no mapping or cannot travel, and `ValueError` for a type that begins with `run.`
        or `step.`, as the platform's own do: a watch ends with `run.completed`.
        """
        type = one_line(type, what="an event's type")  # noqa: A001 -- the event's word
        if type.startswith(PLATFORMS_EVENTS):
            raise ValueError(f"an event's type {type!r} is one of the platform's own: choose one without run. or step.")
        try:
            data = dict(event)
        except (TypeError, ValueError):
            raise TypeError(f"ctx.emit takes a mapping, like {{'paid': 3}}, not {event.__class__.__name__}") from None
        execution = self._execution
        said = encode({"type": type, "data": data}, what="event")
        self._refuse_large("the event", said)
        digest = identity(type, (event,), {})
        call = RecordCall(execution, execution.branch(), "event", type, digest, result=said, change=lambda _value: None)
        call.begin()  # an event is sent whether or not its sender waits for the commit
        return call

    def publish(self, subject: str, data: Any) -> Awaitable[None]:
        """Publish `data` as JSON on a NATS subject: a step, so at least once."""
        host = self._execution.host
        payload = encode(data, what="data").encode()

        async def send(subject: str, data: Any) -> None:  # noqa: ARG001 -- part of the step's identity
            await host.events.publish_now(subject, payload)

        return self.step("publish", send, subject, data)

    async def progress(self, fraction: float, text: str = "") -> None:
        """Tell watchers how far the run is: `fraction` from 0 to 1. Best effort, not journaled."""
        self.delta("tool.progress", {"fraction": fraction, "text": text})

    def delta(self, kind: str, data: Mapping[str, Any]) -> None:
        """Send an event of the run that is not journaled."""
        if not self._execution.replaying:
            self._execution.host.events.passing(self._execution, kind, data)

    def continue_as_new(self, task: Any) -> Any:
        """End this life of the run and begin it anew with `task`, the same id and an empty journal. Never returns.

        Raises `WorkflowMisuse` when undos are registered: the new life would not know them.
        """
        self._execution.branch()
        if self._execution.undos:
            names = ", ".join(undo.name for undo in self._execution.undos)
            raise WorkflowMisuse(f"continue_as_new would forget what is registered with ctx.on_failure: {names}")
        reach("continue.before", self.run_id)
        text = encode(task, what="the new task")
        self._refuse_large("the new task", text)
        raise RunContinued(text)
