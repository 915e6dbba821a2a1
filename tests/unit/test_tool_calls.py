from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

from perdure.agent import tool_calls
from perdure.agent.tool_calls import LONGEST_RESULT, content_of, failed_with, run_function
from perdure.agent.tools import tool
from perdure.engine import Context
from perdure.errors import PermanentError, RetryableError


async def run(function, timeout=5.0, **kwargs):
    return await run_function(tool(function), kwargs, timeout)


async def test_async_and_plain_functions_return_their_value():
    async def slow(a: int) -> int:
        return a + 1

    def plain(a: int) -> str:
        return f"{a} {threading.current_thread().name}"

    assert await run(slow, a=1) == 2
    assert await run(plain, a=1) == "1 perdure-tool"


async def test_a_plain_function_does_not_hold_the_loop():
    began, end = threading.Event(), threading.Event()

    def hang() -> str:
        began.set()
        end.wait(10)
        return "done"

    task = asyncio.create_task(run(hang))
    while not began.is_set():
        await asyncio.sleep(0)
    end.set()
    assert await task == "done"


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()])
@pytest.mark.parametrize("plain", [True, False])
async def test_nothing_that_a_tool_raises_leaves_as_it_is_when_it_would_end_the_process(raised, plain):
    def sync_tool() -> None:
        raise raised

    async def async_tool() -> None:
        raise raised

    with pytest.raises(PermanentError):
        await run(sync_tool if plain else async_tool)


async def test_an_ordinary_error_comes_out_as_it_is():
    def broken() -> None:
        raise LookupError("no such order")

    with pytest.raises(LookupError, match="no such order"):
        await run(broken)
    assert failed_with(LookupError("no such order")).content == (
        '{"error":{"type":"LookupError","message":"no such order"}}'
    )


async def test_stop_iteration_in_a_thread_is_an_error_like_any_other():
    def broken() -> None:
        raise StopIteration("x")

    with pytest.raises((StopIteration, RuntimeError, PermanentError)):
        await asyncio.wait_for(run(broken), 5)


async def test_a_tool_that_hangs_is_given_up_even_when_it_ignores_its_cancellation():
    end = asyncio.Event()
    heard = []

    async def stubborn() -> None:
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                heard.append("cancelled")

    with pytest.raises(TimeoutError, match=r"not done within 0\.05 s"):
        await run(stubborn, timeout=0.05)
    end.set()
    await asyncio.sleep(0)

    def hang() -> None:
        time.sleep(0.3)

    with pytest.raises(TimeoutError):
        await run(hang, timeout=0.05)


async def test_the_threads_of_hung_tools_are_bounded(monkeypatch):
    monkeypatch.setattr(tool_calls, "MOST_THREADS", 1)
    monkeypatch.setattr(tool_calls, "_threads", tool_calls._Threads())
    end = threading.Event()

    def hang() -> None:
        end.wait(10)

    with pytest.raises(TimeoutError):
        await run(hang, timeout=0.02)
    with pytest.raises(RetryableError):
        await run(hang)
    end.set()


async def test_a_run_that_ends_cancels_its_tool():
    began, told = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.set()

    task = asyncio.create_task(run(waits))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(told.wait(), 5)


def test_results_are_text_or_json_and_bounded():
    assert content_of("as it is", "t").content == "as it is"
    assert content_of({"a": [1, None]}, "t").content == '{"a":[1,null]}'
    assert content_of(object(), "t").error
    assert content_of("\ud800", "t").error
    long = content_of("x" * (LONGEST_RESULT + 1), "t")
    assert not long.error
    assert "[cut: the result has 200001 characters" in long.content


def test_a_tool_with_a_context_is_known_as_one():
    @tool
    async def both(ctx: Context) -> None:
        """Both."""

    assert both.wants_context
    assert sys.modules["perdure.agent.tools"]
