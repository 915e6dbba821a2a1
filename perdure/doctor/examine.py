"""All checks, in an order in which each can lean on those before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp

from perdure.doctor import machine, nats, platform, postgres, redis
from perdure.doctor import settings as settings_check
from perdure.doctor.findings import Finding, Notes
from perdure.settings import Settings

CONSUL_PATIENCE = aiohttp.ClientTimeout(total=3)


async def examine(settings: Settings, *, now: Callable[[], float] = time.time) -> list[Finding]:
    """Look at everything that `settings` name, and change nothing. `now` is this machine's clock, seconds since 1970.

    Nothing is raised for what is found: what cannot be reached is a finding, and what depends on it is `skipped`.
    """
    found = [*await machine.look(settings), *await settings_check.look(settings)]
    on_nats, on_postgres = Notes("nats"), Notes("postgres")
    on_platform = Notes("platform")
    nc, connection = await asyncio.gather(
        nats.open_client(settings, on_nats), postgres.open_connection(settings, on_postgres)
    )
    try:
        there: list[platform.Process] = []
        if nc is not None:
            await nats.look(nc, on_nats, settings)
            await nats.clock(nc, on_nats, now())
            there = await platform.processes(nc)
            await platform.look(nc, settings, there, on_platform)
        else:
            on_platform.skip("processes", "nobody can be asked without NATS")
        if connection is None:
            on_platform.skip("rows", "nothing can be read without Postgres")
        elif await postgres.look(connection, settings, on_postgres, processes=len(there), now=now()):
            present = {process.agent for process in there if process.agent}
            await postgres.platform(connection, on_platform, present=present)
        else:
            on_platform.skip("rows", "the tables are not all there")
    finally:
        if nc is not None:
            await nc.close()
        if connection is not None:
            connection.terminate()
    found += [*on_nats.findings, *on_postgres.findings, *await redis.look(settings)]
    return [*found, *await _consul(settings), *on_platform.findings]


async def _consul(settings: Settings) -> list[Finding]:
    notes = Notes("consul")
    address = settings.consul_http_addr
    if not address:
        return []
    url = f"{address if '//' in address else f'http://{address}'}/v1/status/leader"
    headers = {"X-Consul-Token": settings.consul_http_token} if settings.consul_http_token else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=CONSUL_PATIENCE) as session,
            session.get(url, headers=headers) as reply,
        ):
            leader = (await reply.text()).strip().strip('"')
            said = f"answers {reply.status}" if reply.status != 200 else "has no leader" if not leader else ""
    except aiohttp.ClientConnectorDNSError:  # as in containers of which the one with Consul was left out
        notes.skip("answers", f"there is no host of CONSUL_HTTP_ADDR ({address}): nobody is registered, work goes on")
        return notes.findings
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        said = f"cannot be used: {str(error) or type(error).__name__}"
    if said:
        notes.warn(
            "answers",
            f"Consul at {address} {said}; work goes on, and nobody is registered there",
            "Start it, or check CONSUL_HTTP_ADDR and CONSUL_HTTP_TOKEN; without Consul, unset CONSUL_HTTP_ADDR",
        )
    else:
        notes.ok("answers", f"its leader is {leader}")
    return notes.findings
