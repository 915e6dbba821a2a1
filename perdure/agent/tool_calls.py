"""Runs one tool call so that nothing a tool does can end the run, the process or the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog

from perdure.agent.tools import Tool
from perdure.engine.codec import encode
from perdure.errors import ControlFlow, PermanentError, RetryableError

LONGEST_RESULT: Final = 200_000
"""Characters of one result that the model is shown."""
MOST_THREADS: Final = 256
"""Threads of plain functions at a time in one process; hung ones count."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the model is told: `content`, and whether it is an error."""

    content: str
    error: bool = False


def failed(kind: str, message: str) -> ToolResult:
    """An error as the model reads it: its kind and what it says, never a traceback."""
    return ToolResult(orjson.dumps({"error": {"type": kind, "message": message}}).decode(), error=True)


def failed_with(error: BaseException | dict[str, Any]) -> ToolResult:
    """The result for a tool that raised."""
    if isinstance(error, dict):
        return failed(str(error.get("type", "Error")), str(error.get("message", "")))
    return failed(type(error).__name__, str(error) or type(error).__name__)


def content_of(value: Any, name: str) -> ToolResult:
    """A tool's return value as the model reads it: text as it is, everything else as JSON."""
    try:
        text = value if isinstance(value, str) else encode(value, what=f"the result of tool {name!r}")
        text = text.replace("\x00", "\\0")  # a byte that no text column holds
        text.encode()
    except (TypeError, UnicodeError) as error:
        return failed("TypeError", str(error))
    if len(text) > LONGEST_RESULT:
        text = f"{text[:LONGEST_RESULT]}\n[cut: the result has {len(text)} characters, {LONGEST_RESULT} are shown]"
    return ToolResult(text)


class _Threads:
    """Plain functions, each in a daemon thread of its own: one that hangs holds back neither others nor the exit."""

    def __init__(self) -> None:
        self._running = 0
        self._lock = threading.Lock()

    async def run(self, function: Callable[[], Any]) -> Any:
        """`function()` in a thread. Raises `RetryableError` when too many are running."""
        with self._lock:
            if self._running >= MOST_THREADS:
                raise RetryableError(f"{MOST_THREADS} tools are running in threads already", retry_after=1.0)
            self._running += 1
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
        context = contextvars.copy_context()

        def finish(value: Any, error: BaseException | None) -> None:
            if not done.done():
                done.set_result((value, error))

        def work() -> None:
            value, raised = None, None
            try:
                value = context.run(function)
            except BaseException as error:  # noqa: BLE001  (SystemExit too: it is the tool's outcome, told to the model)
                raised = error
            finally:
                with self._lock:
                    self._running -= 1
            try:
                loop.call_soon_threadsafe(finish, value, raised)
            except RuntimeError:
                log.debug("a tool outlived its process", action="tool.outlived")

        threading.Thread(target=work, name="perdure-tool", daemon=True).start()
        value, raised = await done
        if raised is not None:
            raise raised
        return value


_threads = _Threads()


async def _guarded(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """`work`'s outcome as a value: a SystemExit that leaves a task would take the event loop with it."""
    try:
        return await work(), None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001  (see above; the caller decides)
        return None, error


async def run_function(tool: Tool, kwargs: dict[str, Any], timeout: float | None) -> Any:
    """The tool's return value.

    Raises what the tool raises, anything outside `Exception` as `PermanentError`, and `TimeoutError` after `timeout`
    seconds, whether or not the tool heeds its cancellation.
    """

    async def work() -> Any:
        if tool.is_async:
            return await tool.function(**kwargs)
        value = await _threads.run(lambda: tool.function(**kwargs))
        return await value if asyncio.iscoroutine(value) else value

    task = asyncio.ensure_future(_guarded(work))
    try:
        await asyncio.wait({task}, timeout=timeout)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not task.done():
        task.cancel()
        raise TimeoutError(f"tool {tool.name!r} was not done within {timeout:g} s")
    if task.cancelled():
        raise PermanentError(f"tool {tool.name!r} cancelled itself")
    value, raised = task.result()
    if isinstance(raised, ControlFlow) or raised is None or isinstance(raised, Exception):
        if raised is not None:
            raise raised
        return value
    raise PermanentError(f"tool {tool.name!r} raised {type(raised).__name__}: {raised}") from raised
