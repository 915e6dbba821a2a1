"""Registration in Consul with a TTL check. Consul being away never harms the work."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import consul.aio
import consul.base
import structlog
from consul import ConsulException

from perdure.observe.health import Status
from perdure.settings import Settings

TTL: Final = 30.0  # seconds without a beat until Consul calls the process critical
FORGET_AFTER: Final = "10m"  # critical for so long: Consul drops the registration
TIMEOUT: Final = 3.0  # seconds for one call
NOTE_LENGTH: Final = 1000

log = structlog.get_logger()


class ConsulRegistration:
    """One process in Consul: registers, beats every `ttl / 3` seconds with its health, comes off at `deregister`.

    `health` gives a report (`perdure.observe.health`), `meta` what the registration shows, `http_check` is a URL that
    Consul asks itself. When `meta` changes, or Consul has forgotten the check, the process is registered again. Nothing
    here raises because of Consul.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        instance_id: str,
        health: Callable[[], Awaitable[dict[str, Any]]],
        meta: Callable[[], dict[str, str]],
        tags: tuple[str, ...] = (),
        port: int | None = None,
        address: str | None = None,
        http_check: str | None = None,
        ttl: float = TTL,
    ) -> None:
        self.service_id = f"{name}-{instance_id}"
        self.check_id = f"{self.service_id}-ttl"
        self._settings = settings
        self._name = name
        self._health = health
        self._meta = meta
        self._tags = tags
        self._port = port
        self._address = address
        self._http_check = http_check
        self._ttl = ttl
        self._registered: dict[str, str] | None = None  # the meta that Consul has
        self._reachable = True

    async def run(self) -> None:
        """Register and beat until cancelled."""
        address = self._settings.consul_http_addr
        if not address:
            return
        try:
            client = await asyncio.to_thread(_client, address, self._settings.consul_http_token)
        except (ValueError, OSError) as error:
            log.error(  # noqa: TRY400 - the text says it all
                "Consul's address or certificates are not usable; going on without Consul",
                action="consul.bad_address",
                error=str(error),
            )
            return
        try:
            while True:
                await self._guarded(lambda: self._beat(client))
                await asyncio.sleep(self._ttl / 3)
        finally:
            await client.close()

    async def deregister(self) -> None:
        """Take the process out of Consul, if it is in. Call it when `run` has ended."""
        if self._registered is None or not self._settings.consul_http_addr:
            return
        try:
            client = await asyncio.to_thread(_client, self._settings.consul_http_addr, self._settings.consul_http_token)
        except (ValueError, OSError) as error:  # its certificates have gone since: the check will run out by itself
            log.warning("still registered in Consul", action="consul.not_deregistered", error=str(error))
            return
        try:
            await self._guarded(lambda: client.agent.service.deregister(self.service_id))
            self._registered = None
        finally:
            await client.close()

    async def _beat(self, client: consul.aio.Consul) -> None:
        report = await self._health()
        meta = self._meta()
        if self._registered != meta:
            await self._register(client, report, meta)
        elif not await self._tell(client, report):
            log.warning("Consul has forgotten this process; registering again", action="consul.forgotten")
            await self._register(client, report, meta)

    async def _register(self, client: consul.aio.Consul, report: dict[str, Any], meta: dict[str, str]) -> None:
        status: Status = report["status"]
        await client.agent.service.register(
            self._name,
            service_id=self.service_id,
            address=self._address,
            port=self._port,
            tags=list(self._tags),
            meta=meta,
            check={
                "CheckID": self.check_id,
                "Name": f"{self._name} says it is well",
                "TTL": f"{self._ttl:g}s",
                "DeregisterCriticalServiceAfter": FORGET_AFTER,
                "Status": {"ok": "passing"}.get(status, status),
            },
            extra_checks=[self._asked_check(self._http_check)] if self._http_check else None,
        )
        first, self._registered = self._registered is None, meta
        await self._tell(client, report)
        if first:
            log.info("registered in Consul", action="consul.registered", service_id=self.service_id)

    def _asked_check(self, url: str) -> dict[str, Any]:
        return {
            "CheckID": f"{self.service_id}-http",
            "Name": f"{self._name} answers over HTTP",
            "HTTP": url,
            "Interval": f"{self._ttl / 3:g}s",
            "Timeout": f"{TIMEOUT:g}s",
            "DeregisterCriticalServiceAfter": FORGET_AFTER,
        }

    async def _tell(self, client: consul.aio.Consul, report: dict[str, Any]) -> bool:
        """Whether Consul knows the check."""
        status: Status = report["status"]
        check = client.agent.check
        tell = {"ok": check.ttl_pass, "warning": check.ttl_warn, "critical": check.ttl_fail}[status]
        try:
            return bool(await tell(self.check_id, notes=_note(report)))
        except ConsulException as error:
            if "unknown check" in str(error).lower():  # older agents answer 500 where newer ones answer 404
                return False
            raise

    async def _guarded(self, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                await call()
        except (ConsulException, aiohttp.ClientError, OSError, ValueError) as error:
            if self._reachable:
                self._reachable = False
                log.warning(
                    "Consul cannot be used; work goes on, trying again",
                    action="consul.unreachable",
                    error=str(error) or type(error).__name__,
                )
        else:
            if not self._reachable:
                self._reachable = True
                log.info("Consul answers again", action="consul.reachable")


class _Http(consul.aio.HTTPClient):  # type: ignore[misc]  # py-consul ships no types
    """py-consul's HTTP client on a session of ours: its own passes arguments that aiohttp has deprecated."""

    def __init__(self, host: str, port: int, scheme: str, tls: ssl.SSLContext | bool) -> None:
        consul.base.HTTPClient.__init__(self, host, port, scheme, True)
        self._tls = tls
        self._made: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._made is None:  # in the loop that uses it
            self._made = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls), timeout=aiohttp.ClientTimeout(total=TIMEOUT)
            )
        return self._made

    async def close(self) -> None:
        if self._made is not None:
            await self._made.close()


class _Consul(consul.aio.Consul):  # type: ignore[misc]  # py-consul ships no types
    tls: ssl.SSLContext | bool = True

    def http_connect(self, host: str, port: int, scheme: str, _verify: bool = True, _cert: object = None) -> _Http:
        return _Http(host, port, scheme, type(self).tls)


def _note(report: dict[str, Any]) -> str:
    bad = [f"{name}: {each['text']}" for name, each in report["checks"].items() if each["status"] != "ok"]
    return ("; ".join(bad) or "ok")[:NOTE_LENGTH]


def _client(address: str, token: str | None) -> consul.aio.Consul:
    """A client for `host:port` or a URL, as CONSUL_HTTP_ADDR has it. `ValueError` for anything else.

    The other variables of Consul's own programs say how: CONSUL_HTTP_SSL, CONSUL_HTTP_SSL_VERIFY, CONSUL_CACERT,
    CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY.
    """
    scheme = "https" if _true("CONSUL_HTTP_SSL") else "http"
    parts = urlsplit(address if "//" in address else f"//{address}", scheme=scheme)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{address!r} is neither host:port nor an http(s) URL")
    kind = type("_ConsulOverTls", (_Consul,), {"tls": _tls() if parts.scheme == "https" else True})
    return kind(
        host=parts.hostname,
        port=parts.port or (443 if parts.scheme == "https" else 8500),
        token=token,
        scheme=parts.scheme,
    )


def _tls() -> ssl.SSLContext | bool:
    """What certificates are believed and shown. `ValueError` naming the variable whose file is of no use."""
    if os.environ.get("CONSUL_HTTP_SSL_VERIFY", "true").strip().lower() in ("false", "0"):
        return False
    authority = os.environ.get("CONSUL_CACERT") or None
    certificate, key = os.environ.get("CONSUL_CLIENT_CERT") or None, os.environ.get("CONSUL_CLIENT_KEY") or None
    try:
        made = ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise ValueError(f"CONSUL_CACERT {authority!r} holds no certificate: {error}") from error
    if certificate is not None:
        try:
            made.load_cert_chain(certificate, key)
        except OSError as error:
            raise ValueError(f"CONSUL_CLIENT_CERT {certificate!r} with CONSUL_CLIENT_KEY {key!r}: {error}") from error
    return made


def _true(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in ("true", "1")
