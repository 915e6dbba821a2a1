"""The one NATS connection of a process: it never gives up, never reconnects in step with others, and says so once."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import structlog
from nats.aio.client import Client, Server
from nats.errors import SlowConsumerError

from perdure import subjects
from perdure.bus.namespace import BusClient, client_in
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.tls import client_context

Hook = Callable[[], Awaitable[None]]

CONNECT_PATIENCE: Final = 5.0  # seconds for the first connection
PENDING_SIZE: Final = 32 * 1024 * 1024  # bytes that wait in memory while the server is away
PING_INTERVAL: Final = 10  # seconds; two missed pings are a dead connection
FIRST_WAIT: Final = 0.05  # seconds before the first attempt to reconnect, doubled with each further one
LONGEST_WAIT: Final = 2.0
MOST_REFUSED: Final = 100  # subjects that are remembered and said
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+")
_REFUSED: Final = re.compile(r"permissions violation for (?P<what>\w+) to \"(?P<subject>[^\"]*)\"", re.IGNORECASE)
_SEED: Final = re.compile(r"^SU[A-Z2-7]{40,}\s*$", re.MULTILINE)

log = structlog.get_logger()


class _Events:
    """What nats-py calls back: logs each kind of trouble once between two good connections."""

    def __init__(self, client: BusClient, name: str, on_reconnect: Hook | None, on_closed: Hook | None) -> None:
        self._client = client
        self.opened = False
        self.last_error: Exception | None = None
        self._name = name
        self._on_reconnect = on_reconnect
        self._on_closed = on_closed
        self._said: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def error(self, error: Exception) -> None:
        self.last_error = error
        kind = type(error).__name__
        if isinstance(error, SlowConsumerError):
            kind += f" {error.subject}"
        if refused := _REFUSED.search(str(error)):
            kind = refused[0]
            if len(self._client.refused) < MOST_REFUSED and kind not in self._said:
                self._client.refused.add(refused["subject"].upper())
                self._said.add(kind)
                log.error(
                    "NATS refuses this user a subject: give it the permission, or another user "
                    "(`perdure deploy nats-permissions` says which ones it needs)",
                    action="nats.forbidden",
                    what=refused["what"].lower(),
                    subject=refused["subject"],
                    connection=self._name,
                )
        elif self.opened and kind not in self._said:
            self._said.add(kind)
            log.warning("trouble with NATS", action="nats.error", error=_said(error), connection=self._name)

    async def disconnected(self) -> None:
        if self.opened and not self._client.is_closed:
            log.warning("lost the connection to NATS", action="nats.disconnected", connection=self._name)

    async def reconnected(self) -> None:
        self._said.clear()
        log.info("connected to NATS again", action="nats.reconnected", connection=self._name)
        # nats-py awaits this inside its reconnect loop, where an error or a wait would break the next reconnect.
        self._start(self._on_reconnect, "nats.reconnect_hook_failed")

    async def closed(self) -> None:
        if self.opened:
            self._start(self._on_closed, "nats.closed_hook_failed")

    def _start(self, hook: Hook | None, action: str) -> None:
        if hook is None:
            return
        task = asyncio.get_running_loop().create_task(self._guarded(hook, action))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, hook: Hook, action: str) -> None:
        try:
            await hook()
        except Exception:
            log.exception("a hook of the NATS connection failed", action=action, connection=self._name)


async def connect(
    settings: Settings,
    name: str,
    *,
    on_reconnect: Hook | None = None,
    on_closed: Hook | None = None,
) -> Client:
    """Connect to `settings.nats_url` (several servers: separated by commas) as `name`.

    `on_reconnect` runs as a task of its own after each reconnect, `on_closed` once when the connection is closed for
    good. Raises `SetupError` naming the address and the fix when no server answers within 5 seconds; later the
    connection is tried again for ever, with jitter.
    """
    servers = [server.strip() for server in settings.nats_url.split(",") if server.strip()]
    if not servers:  # nats-py would turn round for ever
        raise SetupError(_unreachable(settings, ValueError("it names no server")))
    who = await asyncio.to_thread(identity, settings)
    client = client_in(settings.namespace)
    events = _Events(client, name, on_reconnect, on_closed)
    try:
        async with asyncio.timeout(CONNECT_PATIENCE):
            await client.connect(
                servers=servers,
                name=name,
                error_cb=events.error,
                disconnected_cb=events.disconnected,
                reconnected_cb=events.reconnected,
                closed_cb=events.closed,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type]  # seconds; only between first connects
                reconnect_to_server_handler=_next_server,
                ping_interval=PING_INTERVAL,
                pending_size=PENDING_SIZE,
                drain_timeout=max(1, int(settings.drain_timeout)),
                **who,
            )
    except Exception as error:
        await client.close()
        raise SetupError(_unreachable(settings, events.last_error or error)) from error
    events.opened = True
    return client


def identity(settings: Settings) -> dict[str, Any]:
    """Who we are to NATS, where replies come to, and TLS, as nats-py takes it. Reads files.

    Raises `SetupError` for a file that cannot be used.
    """
    said: dict[str, Any] = {"inbox_prefix": settings.nats_inbox_prefix or "_INBOX"}
    user = settings.nats_user or unquote(urlsplit(settings.nats_url.partition(",")[0].strip()).username or "")
    if user and not settings.nats_inbox_prefix and _TOKEN.fullmatch(user):
        said["inbox_prefix"] = subjects.inbox(user)  # which that user alone may hear, where permissions say so
    if settings.nats_user:
        said |= {"user": settings.nats_user, "password": settings.nats_password or ""}
    for variable, file, option in (
        ("PERDURE_NATS_CREDENTIALS", settings.nats_credentials, "user_credentials"),
        ("PERDURE_NATS_NKEY", settings.nats_nkey, "nkeys_seed_str"),
    ):
        if file is not None:
            try:
                text = file.read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError) as error:
                raise SetupError(f"{variable}={file} cannot be read: {error}") from None
            if not _SEED.search(text):
                raise SetupError(f"{variable}={file} holds no seed of a user: a line that begins with SU")
            if find_spec("nkeys") is None:
                raise SetupError(f"{variable} needs the package nkeys: `pip install nkeys`")
            said[option] = text.strip() if option == "nkeys_seed_str" else str(file)  # credentials are read again, too
    if (tls := client_context(settings, "nats")) is not None:
        said["tls"] = tls
    return said


def _next_server(pool: list[Server], _info: dict[str, Any]) -> tuple[Server | None, float]:
    """The server tried least so far, and a jittered wait, so that a restarted server is not met by all at once."""
    server = min(pool, key=lambda candidate: candidate.reconnects)
    ceiling = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(server.reconnects, 10))
    return server, random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, no secret


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _unreachable(settings: Settings, error: BaseException) -> str:
    """The sentence for a NATS server that does not answer, without its password."""
    named = (urlsplit(server.strip()).netloc.rpartition("@")[2] for server in settings.nats_url.split(","))
    where = ", ".join(filter(None, named))
    return (
        f"NATS at {where or 'an empty address'} cannot be used: {_said(error)}. "
        "Check NATS_URL, or start the platform with `perdure up`."
    )
