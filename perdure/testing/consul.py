"""A Consul agent for tests: the few routes that a registration uses, as Consul's HTTP API documents them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp import web

from perdure.testing.fake_server import FakeServer

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
LEAST_DEREGISTER: Final = 60.0  # Consul waits at least a minute before it drops a critical service
NODE: Final = "fake"


@dataclass(slots=True)
class _Check:
    id: str
    name: str
    ttl: float
    deregister_after: float | None
    status: str
    output: str
    updated: float
    critical_since: float | None = None
    http: str | None = None  # asked by Consul itself


@dataclass(slots=True)
class _Service:
    id: str
    name: str
    tags: list[str]
    meta: dict[str, str]
    address: str
    port: int
    checks: dict[str, _Check] = field(default_factory=dict)


class FakeConsul(FakeServer):
    """`async with FakeConsul() as fake:` serves on `fake.address` (`host:port`, a free port).

    `clock` (seconds) decides when a TTL is over. `forget()` is a restart without its data. `requests` counts calls,
    `tokens` holds the ACL tokens that came with them, `told` every status that a check was given, and while `broken`
    is true every call is answered 500.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = ""
        self.broken = False
        self.requests = 0
        self.tokens: set[str] = set()
        self.told: list[str] = []
        self._clock = clock
        self._services: dict[str, _Service] = {}

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application(middlewares=[self._count])
        app.router.add_put("/v1/agent/service/register", self._register)
        app.router.add_put("/v1/agent/service/deregister/{id}", self._deregister)
        app.router.add_put("/v1/agent/check/{verb:pass|warn|fail}/{id}", self._beat)
        app.router.add_put("/v1/agent/check/update/{id}", self._update)
        app.router.add_get("/v1/agent/services", self._agent_services)
        app.router.add_get("/v1/catalog/services", self._catalog_services)
        app.router.add_get("/v1/health/service/{name}", self._health_service)
        return app

    def listening(self, address: str) -> None:
        """It has an address now."""
        self.address = address

    def forget(self) -> None:
        """Lose every registration, as an agent does that restarts without its data folder."""
        self._services.clear()

    @web.middleware
    async def _count(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        self.requests += 1
        if token := request.headers.get("X-Consul-Token"):
            self.tokens.add(token)
        if self.broken:
            return web.Response(status=500, text="No cluster leader")
        self._expire()
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _ask(self) -> None:
        """The HTTP checks, asked when somebody looks, where Consul asks at their intervals."""
        asked = [check for service in self._services.values() for check in service.checks.values() if check.http]
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            for check in asked:
                try:
                    async with session.get(str(check.http)) as answer:
                        good, check.output = answer.status // 100 == 2, f"HTTP GET {check.http}: {answer.status}"
                except (aiohttp.ClientError, TimeoutError) as error:
                    good, check.output = False, str(error)
                _set(check, "passing" if good else "critical", self._clock())

    def _expire(self) -> None:
        now = self._clock()
        for service in list(self._services.values()):
            for check in service.checks.values():
                if check.status != "critical" and now - check.updated > check.ttl:
                    check.output = "TTL expired"
                    _set(check, "critical", check.updated + check.ttl)
                since, after = check.critical_since, check.deregister_after
                if since is not None and after is not None and now - since > max(after, LEAST_DEREGISTER):
                    self._services.pop(service.id, None)

    async def _register(self, request: web.Request) -> web.Response:
        body = _lower(await request.json())
        name = str(body.get("name") or "")
        if not name:
            return web.Response(status=400, text="Missing service name")
        service_id = str(body.get("id") or name)
        given = [*body.get("checks", []), *([body["check"]] if body.get("check") else [])]
        service = _Service(
            id=service_id,
            name=name,
            tags=list(body.get("tags") or []),
            meta=dict(body.get("meta") or {}),
            address=str(body.get("address") or ""),
            port=int(body.get("port") or 0),
        )
        for index, each in enumerate(map(_lower, given), start=1):
            default = f"service:{service_id}" + (f":{index}" if len(given) > 1 else "")
            check_id = str(each.get("checkid") or default)
            if "ttl" not in each and not ("http" in each and "interval" in each):
                return web.Response(status=400, text="this fake knows TTL checks, and HTTP checks with an interval")
            after = each.get("deregistercriticalserviceafter")
            check = _Check(
                id=check_id,
                name=str(each.get("name") or f"Service '{name}' check"),
                ttl=_seconds(str(each["ttl"])) if "ttl" in each else math.inf,
                http=each.get("http"),
                deregister_after=_seconds(str(after)) if after else None,
                status="critical",
                output="",
                updated=self._clock(),
            )
            _set(check, str(each.get("status") or "critical"), self._clock())
            if check.http is None:
                self.told.append(check.status)
            service.checks[check_id] = check
        self._services[service_id] = service
        return web.Response()

    async def _deregister(self, request: web.Request) -> web.Response:
        service_id = request.match_info["id"]
        if self._services.pop(service_id, None) is None:
            return web.Response(status=404, text=f'Unknown service ID "{service_id}"')
        return web.Response()

    async def _beat(self, request: web.Request) -> web.Response:
        status = {"pass": "passing", "warn": "warning", "fail": "critical"}[request.match_info["verb"]]
        return self._set_check(request.match_info["id"], status, request.query.get("note", ""))

    async def _update(self, request: web.Request) -> web.Response:
        body = _lower(await request.json())
        status = str(body.get("status", ""))
        if status not in ("passing", "warning", "critical"):
            return web.Response(status=400, text=f"Invalid check status: '{status}'")
        return self._set_check(request.match_info["id"], status, str(body.get("output", "")))

    def _set_check(self, check_id: str, status: str, output: str) -> web.Response:
        for service in self._services.values():
            if check := service.checks.get(check_id):
                self.told.append(status)
                check.output = output
                check.updated = self._clock()
                _set(check, status, check.updated)
                return web.Response()
        return web.Response(
            status=404, text=f'Unknown check ID "{check_id}". Ensure that the check ID is passed, not the check name.'
        )

    async def _agent_services(self, _request: web.Request) -> web.Response:
        return web.json_response({service.id: _about(service) for service in self._services.values()})

    async def _catalog_services(self, _request: web.Request) -> web.Response:
        found: dict[str, set[str]] = {"consul": set()}
        for service in self._services.values():
            found.setdefault(service.name, set()).update(service.tags)
        return web.json_response({name: sorted(tags) for name, tags in found.items()})

    async def _health_service(self, request: web.Request) -> web.Response:
        await self._ask()
        entries = [
            {
                "Node": {"Node": NODE, "Address": "127.0.0.1"},
                "Service": _about(service),
                "Checks": [
                    {
                        "Node": NODE,
                        "CheckID": check.id,
                        "Name": check.name,
                        "Status": check.status,
                        "Output": check.output,
                        "ServiceID": service.id,
                        "ServiceName": service.name,
                    }
                    for check in service.checks.values()
                ],
            }
            for service in self._services.values()
            if service.name == request.match_info["name"]
            and ("passing" not in request.query or all(c.status == "passing" for c in service.checks.values()))
        ]
        return web.json_response(entries)


def _set(check: _Check, status: str, at: float) -> None:
    if status != "critical":
        check.critical_since = None
    elif check.critical_since is None:
        check.critical_since = at
    check.status = status


def _about(service: _Service) -> dict[str, Any]:
    return {
        "ID": service.id,
        "Service": service.name,
        "Tags": service.tags,
        "Meta": service.meta,
        "Address": service.address,
        "Port": service.port,
    }


def _lower(body: Any) -> dict[str, Any]:
    """Consul takes the names of fields in any case."""
    return {str(key).lower(): value for key, value in dict(body).items()}


def _seconds(text: str) -> float:
    """A Go duration: `1m30s`, `500ms`. `ValueError` for anything else."""
    parts = re.findall(r"([0-9.]+)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"invalid duration {text!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
