"""MCP servers as tools: a program on this machine (stdio) or a URL (streamable HTTP), with an allow-list.

A server that is gone is looked for again and again; a call meanwhile is an error that the model is told. What a server
says of itself is not trusted: odd names, schemas and sizes are left out or cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from importlib import import_module
from typing import Any, Final

import structlog

from perdure.agent.sources import MOST_TOOLS, allowed, described_tool, resolve_headers, tool_name
from perdure.agent.tools import Tool
from perdure.engine import StepContext
from perdure.errors import PermanentError, RetryableError, SetupError

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_LIST_EVERY: Final = 300.0

log = structlog.get_logger()


class McpServer:
    """The tools of one MCP server, named `<name>_<tool>`: `McpServer("files", ["mcp-files", "/x"], allow=["read_*"])`.

    `target` is a URL, or a command with its arguments. `allow` are the tools that the agent may see (names or
    patterns), None is all; `requires_approval` those that a person must allow. `headers` and `env` may hold
    `secret://…` references. `timeout` is seconds for one call.
    """

    def __init__(
        self,
        name: str,
        target: str | Sequence[str],
        *,
        allow: Sequence[str] | None = None,
        requires_approval: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float = 60.0,
        start_timeout: float = 10.0,
    ) -> None:
        if isinstance(target, str) and not target.startswith(("http://", "https://")):
            raise ValueError(f"MCP server {name!r}: target is an http(s) URL or a command as a list, not {target!r}")
        self.name = name
        self._target = target
        self._allow = allow
        self._approval = tuple(requires_approval)
        self._headers = dict(headers or {})
        self._env = dict(env or {})
        self._cwd = cwd
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._tools: dict[str, Tool] = {}
        self._client: Any = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._broken = asyncio.Event()

    def tools(self) -> Mapping[str, Tool]:
        """The tools as the server listed them last; they stay while it is away."""
        return self._tools

    async def start(self) -> None:
        """Connect; a server that does not answer in time is looked for in the background."""
        self._ready.clear()
        self._task = asyncio.create_task(self._run(), name=f"mcp {self.name}")
        waiting = asyncio.ensure_future(self._ready.wait())
        await asyncio.wait({waiting}, timeout=self._start_timeout)
        waiting.cancel()

    async def stop(self) -> None:
        """Disconnect; a program is ended."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._session()
                pause = _FIRST_PAUSE
            except Exception as error:  # noqa: BLE001  (whatever the server or the library raises: try again)
                log.warning(
                    "MCP server is away", action="mcp.away", server=self.name, error=_said(error), retry_in=pause
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _session(self) -> None:
        """One connection, from its beginning to its end; the library wants both in one task."""
        # in a thread, with what it would load in the middle of a call: that reads many files
        mcp, _ = await asyncio.to_thread(lambda: (import_module("mcp"), import_module("jsonschema")))
        async with AsyncExitStack() as stack:
            target = await self._transport(stack)
            client = await stack.enter_async_context(mcp.Client(target, read_timeout_seconds=self._timeout))
            await self._list(client)
            self._client = client
            self._broken.clear()
            self._ready.set()
            log.info("MCP server connected", action="mcp.connected", server=self.name, tools=len(self._tools))
            try:
                while not self._broken.is_set():
                    with suppress(TimeoutError):  # nothing broke: look whether its tools are still the same
                        async with asyncio.timeout(_LIST_EVERY):
                            await self._broken.wait()
                        return
                    await self._list(client)
            finally:
                self._client = None

    async def _transport(self, stack: AsyncExitStack) -> Any:
        if isinstance(self._target, str):
            http = await asyncio.to_thread(import_module, "httpx2")
            transport = await asyncio.to_thread(import_module, "mcp.client.streamable_http")
            headers = await resolve_headers(self._headers)
            # in a thread: it reads the trust store
            limits = http.Timeout(30.0, read=300.0)  # a server may hold a stream open
            client = await asyncio.to_thread(lambda: http.AsyncClient(headers=headers, timeout=limits))
            stack.push_async_callback(client.aclose)
            return transport.streamable_http_client(self._target, http_client=client)
        stdio = await asyncio.to_thread(import_module, "mcp.client.stdio")
        command, *arguments = self._target
        env = await resolve_headers(self._env)
        return stdio.StdioServerParameters(command=command, args=arguments, env=env or None, cwd=self._cwd)

    async def _list(self, client: Any) -> None:
        found: dict[str, Tool] = {}
        cursor: str | None = None
        for _ in range(20):  # a server whose pages never end is lying
            page = await client.list_tools(cursor=cursor)
            for listed in page.tools:
                self._take(listed, found)
            cursor = page.next_cursor
            if cursor is None or len(found) >= MOST_TOOLS:
                break
        self._tools = found

    def _take(self, listed: Any, found: dict[str, Tool]) -> None:
        name = tool_name(self.name, listed.name)
        schema = dict(listed.input_schema or {})
        if not allowed(listed.name, self._allow) or len(found) >= MOST_TOOLS:
            return
        if name in found or schema.get("type", "object") != "object":
            log.warning("MCP tool left out", action="mcp.tool_left_out", server=self.name, tool=str(listed.name)[:200])
            return
        original = listed.name

        async def call(arguments: dict[str, Any], step: StepContext) -> str:
            return await self._call(original, arguments, step)

        found[name] = described_tool(
            name,
            listed.description or original,
            {"type": "object", "properties": {}, **schema},
            call,
            requires_approval=allowed(original, self._approval),
            timeout=self._timeout,
            retry=None,
        )

    async def _call(self, name: str, arguments: dict[str, Any], step: StepContext) -> str:
        client = self._client
        if client is None:
            raise RetryableError(f"MCP server {self.name!r} is not there right now", retry_after=1.0)
        loop = asyncio.get_running_loop()

        async def progress(done: float, total: float | None, text: str | None) -> None:
            step.delta("tool.progress", {"fraction": done / total if total else 0.0, "text": text or ""})

        try:
            began = loop.time()
            result = await client.call_tool(name, arguments, progress_callback=progress)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            kind = type(error).__name__
            if (
                kind in {"MCPError", "ValidationError", "ValueError", "RuntimeError"}
                and loop.time() - began < self._timeout
            ):
                lost = "closed" in str(error).lower()
                if not lost:
                    raise PermanentError(f"MCP server {self.name!r}: {_said(error)}") from error
            self._client = None
            self._broken.set()  # connect anew
            raise PermanentError(
                f"MCP server {self.name!r} broke off ({_said(error)}); the call may have had its effect or not"
            ) from error
        text = _text(result)
        if result.is_error:
            raise PermanentError(text or f"MCP server {self.name!r} says that {name} failed")
        return text


def _said(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, SetupError):
        return str(error)
    return f"{type(error).__name__}: {error}"[:500]


def _text(result: Any) -> str:
    """What the model reads of a result: its text, else its structure as JSON; other kinds are only named."""
    parts: list[str] = []
    for block in result.content or []:
        kind = getattr(block, "type", "unknown")
        if kind == "text":
            parts.append(block.text)
        elif kind == "resource" and getattr(block.resource, "text", None) is not None:
            parts.append(block.resource.text)
        else:
            parts.append(f"[{kind}]")
    if not parts and result.structured_content is not None:
        import orjson  # noqa: PLC0415  (rare)

        return orjson.dumps(result.structured_content, default=str).decode()
    return "\n".join(parts)
