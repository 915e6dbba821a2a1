"""Is the service of this container well? `python deploy/healthcheck.py NAME`: exit code 0 when it is, 1 when not.

It asks over NATS, as everyone else would: the instance of service NAME that runs on this host, and its health. With a
URL in the place of NAME it asks that, for a program that is not on NATS.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import nats
import orjson

PATIENCE = 4.0  # seconds for all of it
URL = "nats://127.0.0.1:4222"


async def look(name: str, host: str) -> str | None:
    """What is wrong with the instance of `name` on `host`; `None` when nothing is."""
    url = os.environ.get("NATS_URL", URL)
    space = os.environ.get("PERDURE_NAMESPACE", "")
    prefix = f"ns.{space}." if space else ""
    nc = await nats.connect(
        url, allow_reconnect=False, max_reconnect_attempts=1, connect_timeout=2, error_cb=_quiet, **who(url)
    )
    try:
        found: asyncio.Queue[Any] = asyncio.Queue()
        inbox = nc.new_inbox()
        await nc.subscribe(inbox, cb=found.put)
        await nc.publish(f"{prefix}$SRV.PING.{name}", reply=inbox)
        while True:
            answer = await found.get()
            if not answer.data:  # NATS itself says that there is nobody
                return f"no instance of {name} answers"
            instance = orjson.loads(answer.data)["id"]
            if instance.startswith(f"{host}-"):
                break
        report = orjson.loads((await nc.request(f"{prefix}health.{name}.{instance}", timeout=2)).data)
    finally:
        await nc.close()
    return None if report["status"] != "critical" else f"{name} is critical: {report['checks']}"


def who(url: str) -> dict[str, Any]:
    """Who the service is to NATS, as its own settings say it; its replies come to inboxes that it may hear."""
    user = os.environ.get("PERDURE_NATS_USER", "")
    named = user or unquote(urlsplit(url.partition(",")[0]).username or "")
    prefix = os.environ.get("PERDURE_NATS_INBOX_PREFIX", "") or (f"_REPLY.{named}" if named else "_INBOX")
    said: dict[str, Any] = {"inbox_prefix": prefix}
    if user:
        said |= {"user": user, "password": os.environ.get("PERDURE_NATS_PASSWORD", "")}
    if credentials := os.environ.get("PERDURE_NATS_CREDENTIALS"):
        said["user_credentials"] = credentials
    if seed := os.environ.get("PERDURE_NATS_NKEY"):
        said["nkeys_seed"] = seed
    authority = os.environ.get("PERDURE_TLS_CA", "")
    if authority and "nats" in os.environ.get("PERDURE_TLS_FOR", "nats"):
        said["tls"] = ssl.create_default_context(cafile=None if authority == "system" else authority)
        if certificate := os.environ.get("PERDURE_TLS_CERT"):
            said["tls"].load_cert_chain(certificate, os.environ.get("PERDURE_TLS_KEY") or None)
    return said


def fetch(url: str) -> None:
    """Raises `OSError` or `HTTPException` when `url` does not answer with success."""
    with urlopen(url, timeout=PATIENCE):  # noqa: S310 - the URL stands in the file that starts this container
        return


async def _quiet(_error: Exception) -> None:
    """What cannot be asked is said once, by `main`."""


async def main() -> int:
    """The exit code; what is wrong goes to stderr, where `docker inspect` shows it."""
    name, host = sys.argv[1], os.environ.get("HOSTNAME") or socket.gethostname()
    try:
        async with asyncio.timeout(PATIENCE):
            wrong = await (asyncio.to_thread(fetch, name) if name.startswith("http") else look(name, host))
    except TimeoutError:
        wrong = f"no instance of {name} on {host} answers"
    except (OSError, HTTPException, nats.errors.Error) as error:
        asked = name if name.startswith("http") else "NATS"
        wrong = f"{asked} cannot be asked: {str(error) or type(error).__name__}"
    if wrong:
        sys.stderr.write(wrong + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
