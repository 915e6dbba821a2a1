"""The operations of an OpenAPI document as tools, each with its parameters and its JSON body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

import aiohttp
import orjson
import structlog

from perdure.agent.sources import MOST_TOOLS, allowed, described_tool, resolve_headers, tool_name
from perdure.agent.tools import Tool
from perdure.engine import StepContext
from perdure.errors import PermanentError, RetryableError, SetupError

_METHODS: Final = ("get", "put", "post", "delete", "patch")
_SAFE_TO_REPEAT: Final = frozenset({"get", "put", "delete"})
_LARGEST: Final = 1_000_000
_BODY: Final = "body"

log = structlog.get_logger()


class OpenApi:
    """The tools of one HTTP API, named `<name>_<operationId>`: `OpenApi("shop", "shop.json", allow=["get_*"])`.

    `document` is a path, a URL or the document itself (JSON, OpenAPI 3). `base_url` takes the place of its first
    server. `allow` are operations (ids or patterns) that the agent may see, None is all; `requires_approval` those that
    a person must allow. `headers` may hold `secret://…` references. A POST carries an `Idempotency-Key`.
    """

    def __init__(
        self,
        name: str,
        document: str | Path | Mapping[str, Any],
        *,
        base_url: str | None = None,
        allow: Sequence[str] | None = None,
        requires_approval: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.name = name
        self._document = document
        self._base_url = base_url
        self._allow = allow
        self._approval = tuple(requires_approval)
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._tools: dict[str, Tool] = {}
        self._session: aiohttp.ClientSession | None = None

    def tools(self) -> Mapping[str, Tool]:
        """One tool for each allowed operation."""
        return self._tools

    async def start(self) -> None:
        """Read the document. Raises `SetupError` when it cannot be used."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout))
        document = await self._read()
        base = self._base_url or self._server_of(document)
        if urlsplit(base).scheme not in {"http", "https"}:
            raise SetupError(f"OpenAPI {self.name!r}: the document names no http(s) server; give base_url=")
        found: dict[str, Tool] = {}
        for path, item in (document.get("paths") or {}).items():
            for method in _METHODS:
                operation = item.get(method) if isinstance(item, Mapping) else None
                if isinstance(operation, Mapping) and len(found) < MOST_TOOLS:
                    self._take(
                        document, base, path, method, {**operation, "shared": item.get("parameters") or []}, found
                    )
        self._tools = found

    async def stop(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _read(self) -> Mapping[str, Any]:
        said = self._document
        if isinstance(said, Mapping):
            return said
        try:
            if isinstance(said, str) and said.startswith(("http://", "https://")):
                text = await self._fetch(said)
            else:
                text = await asyncio.to_thread(Path(said).read_bytes)
            document = orjson.loads(text)
        except (OSError, aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            raise SetupError(f"OpenAPI {self.name!r}: the document cannot be read: {error}") from error
        if not isinstance(document, Mapping) or not isinstance(document.get("paths"), Mapping):
            raise SetupError(f"OpenAPI {self.name!r}: the document has no paths")
        return document

    async def _fetch(self, url: str) -> bytes:
        assert self._session is not None  # noqa: S101  (start has made it)
        async with self._session.get(url, headers=await resolve_headers(self._headers)) as answer:
            answer.raise_for_status()
            return await answer.read()

    def _server_of(self, document: Mapping[str, Any]) -> str:
        servers = document.get("servers") or [{}]
        url = str(servers[0].get("url", "")) if isinstance(servers[0], Mapping) else ""
        return urljoin(self._document, url) if isinstance(self._document, str) else url

    def _take(
        self,
        document: Mapping[str, Any],
        base: str,
        path: str,
        method: str,
        operation: Mapping[str, Any],
        found: dict[str, Tool],
    ) -> None:
        identity = str(operation.get("operationId") or f"{method}_{path}")
        name = tool_name(self.name, re.sub(r"[^A-Za-z0-9_-]+", "_", identity).strip("_"))
        if not allowed(identity, self._allow) or name in found:
            return
        try:
            parameters, places = _parameters(document, operation)
        except ValueError as error:
            log.warning(
                "operation left out", action="openapi.left_out", api=self.name, operation=identity, error=str(error)
            )
            return

        async def call(arguments: dict[str, Any], step: StepContext) -> str:
            return await self._call(base, path, method, places, arguments, step)

        said = operation.get("description") or operation.get("summary") or f"{method.upper()} {path}"
        found[name] = described_tool(
            name, str(said), parameters, call,
            requires_approval=allowed(identity, self._approval), timeout=self._timeout + 5,
        )  # fmt: skip

    async def _call(
        self,
        base: str,
        path: str,
        method: str,
        places: Mapping[str, str],
        arguments: Mapping[str, Any],
        step: StepContext,
    ) -> str:
        if self._session is None:
            raise PermanentError(f"API {self.name!r} is not open")
        headers = await resolve_headers(self._headers)
        query: list[tuple[str, str]] = []
        for name, value in arguments.items():
            if places.get(name) == "path":
                path = path.replace(f"{{{name}}}", quote(_plain(value), safe=""))
            elif places.get(name) == "query":
                query += [(name, _plain(one)) for one in (value if isinstance(value, list) else [value])]
            elif places.get(name) == "header":
                headers[name] = _plain(value).replace("\r", " ").replace("\n", " ")
        if method == "post":
            headers.setdefault("Idempotency-Key", step.idempotency_key)
        body = orjson.dumps(arguments[_BODY]) if _BODY in arguments else None
        if body is not None:
            headers["Content-Type"] = "application/json"
        repeatable = method in _SAFE_TO_REPEAT
        try:
            async with self._session.request(
                method, base.rstrip("/") + path, params=query, data=body, headers=headers, allow_redirects=False
            ) as answer:
                text = (await answer.content.read(_LARGEST)).decode("utf-8", "replace")
                status, wait = answer.status, answer.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = f"API {self.name!r} cannot be reached: {str(error) or type(error).__name__}"
            raise (
                RetryableError(said) if repeatable else PermanentError(f"{said}; it may have done its work")
            ) from error
        if status < 300:
            return text or f"done ({status})"
        said = f"API {self.name!r} answered {status}: {text[:1000]}"
        if status == 429 or (status >= 500 and repeatable):
            raise RetryableError(said, retry_after=float(wait) if wait.isdigit() else None)
        raise PermanentError(said)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _parameters(document: Mapping[str, Any], operation: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The JSON Schema of an operation's arguments, and where each of them goes."""
    properties: dict[str, Any] = {}
    places: dict[str, str] = {}
    required: list[str] = []
    for given in [*operation["shared"], *(operation.get("parameters") or [])]:
        parameter = _resolve(document, given)
        name, place = str(parameter.get("name", "")), str(parameter.get("in", ""))
        if not name or place not in {"path", "query", "header"}:
            continue
        schema = dict(_resolve(document, parameter.get("schema") or {"type": "string"}))
        if parameter.get("description"):
            schema.setdefault("description", str(parameter["description"])[:1000])
        properties[name], places[name] = schema, place
        if parameter.get("required") or place == "path":
            required.append(name)
    body = _resolve(document, operation.get("requestBody") or {})
    content = (body.get("content") or {}).get("application/json")
    if content is not None:
        properties[_BODY], places[_BODY] = _resolve(document, content.get("schema") or {}), _BODY
        if body.get("required"):
            required.append(_BODY)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return schema, places


def _resolve(document: Mapping[str, Any], value: Any, depth: int = 0) -> Any:
    """`value` with its references put in place. Raises `ValueError` for one that leads nowhere or in circles."""
    if depth > 40:
        raise ValueError("its schema refers to itself")
    if isinstance(value, list):
        return [_resolve(document, one, depth + 1) for one in value]
    if not isinstance(value, Mapping):
        return value
    reference = value.get("$ref")
    if not isinstance(reference, str):
        return {key: _resolve(document, one, depth + 1) for key, one in value.items()}
    if not reference.startswith("#/"):
        raise ValueError(f"it refers to {reference}, outside of the document")
    target: Any = document
    for part in reference[2:].split("/"):
        part = part.replace("~1", "/").replace("~0", "~")  # noqa: PLW2901  (the pointer's own escapes)
        if not isinstance(target, Mapping) or part not in target:
            raise ValueError(f"it refers to {reference}, which is not there")
        target = target[part]
    return _resolve(document, target, depth + 1)
