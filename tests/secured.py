"""Servers as the shipped files secure them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import trustme
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from redis.asyncio import Redis

from perdure import subjects
from perdure.bus import permissions
from perdure.bus.permissions import Permissions
from perdure.embedded.nats_server import NatsServer
from perdure.settings import Settings
from tests.docs import ROOT

SHIPPED = ROOT / "deploy"
ADMIN = "admin"  # whoever else is on that server, and made its other streams


async def redis_answers(client: Redis) -> bool:
    """Whether the redis-server of `client` is up; the client is closed."""
    try:
        return bool(await client.ping())
    except OSError:
        return False
    except Exception as error:  # noqa: BLE001 -- not there yet, in whatever words
        return "LOADING" in str(error)
    finally:
        await client.aclose()


async def answering(nc: Client, subject: str, data: bytes) -> None:
    """Have every request to `subject` answered with `data`, from now on."""

    async def answer(message: Msg) -> None:
        await message.respond(data)

    await nc.subscribe(subject, cb=answer)
    await nc.flush()


class Authority:
    """A certificate authority of one test."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ca = trustme.CA()
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *identities: str) -> tuple[Path, Path]:
        """(certificate, key) of `name`, for these hosts; 127.0.0.1 when none is given."""
        made = self._ca.issue_cert(*(identities or ("127.0.0.1",)))
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        key.chmod(0o600)
        return certificate, key

    def serves(self, name: str, *identities: str) -> ssl.SSLContext:
        """What a server of that name shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(name, *identities))
        return context


@contextlib.asynccontextmanager
async def tls_in_front(port: int, context: ssl.SSLContext, *, postgres: bool = False) -> AsyncIterator[int]:
    """A port that speaks TLS, as servers from wheels do not, and passes on; `postgres`: when asked as Postgres is."""
    tasks: set[asyncio.Task[None]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if postgres:
                assert await reader.readexactly(8) == bytes.fromhex("0000000804d2162f")  # "may I have TLS?"
                writer.write(b"S")
                await writer.start_tls(context)
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(_pass_on(source, target))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=None if postgres else context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def password(user: str) -> str:
    """The password of a user in tests."""
    return f"p-{user}"


class SecuredNats(NatsServer):
    """nats-server with a file of configuration, its variables in the environment."""

    def __init__(self, home: Path, config: Path, variables: dict[str, str]) -> None:
        super().__init__(home)
        self._config = config
        self._variables = variables

    def command(self) -> list[str]:
        """As ever, with the file; the command line goes before it."""
        return [*super().command(), "--config", str(self._config), "--http_port", "-1"]

    def environment(self) -> dict[str, str]:
        """With passwords and places of certificates."""
        return {**super().environment(), **self._variables}


def passwords(users: list[Permissions]) -> dict[str, str]:
    """The variables that nats-server reads the passwords of `users` from."""
    return {permissions.password_variable(each.user): password(each.user) for each in users}


@asynccontextmanager
async def restricted_nats(
    home: Path, *agents: Permissions, tls: Authority | None = None, bucket: bool = False
) -> AsyncIterator[SecuredNats]:
    """nats-server with the shipped files; `users.conf` as the command prints it for these agents."""
    users = [*permissions.services(bucket=bucket), *agents]
    folder = home / "nats-config"
    folder.mkdir()
    plain = (SHIPPED / "nats" / "nats.conf").read_text()
    (folder / "nats.conf").write_text(
        "\n".join(line for line in plain.splitlines() if not line.strip().startswith(("http_port", "store_dir")))
    )
    admin = f'users = [\n    {{ user: "{ADMIN}", password: "{password(ADMIN)}" }}\n'
    (folder / "users.conf").write_text(permissions.render(users).replace("users = [\n", admin, 1))
    secure, variables = (SHIPPED / "nats" / "secure.conf").read_text(), passwords(users)
    if tls is None:
        secure = secure.replace('include "tls.conf"', "")
    else:
        (folder / "tls.conf").write_text((SHIPPED / "nats" / "tls.conf").read_text())
        certificate, key = tls.issue("nats")
        variables |= {"NATS_TLS_CERT": str(certificate), "NATS_TLS_KEY": str(key), "NATS_TLS_CA": str(tls.file)}
    (folder / "secure.conf").write_text(secure)
    server = SecuredNats(home, folder / "secure.conf", variables)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


@dataclass
class User:
    """A plain client as one user; what the server refuses it."""

    nc: Client
    name: str
    fence: Subscription  # what comes back on it was sent after the act, and so was what the server had to say of that
    refused: list[str] = field(default_factory=list)

    async def tries(self, verb: str, subject: str) -> bool:
        """Whether the server lets it `publish` or `subscribe` on `subject`."""
        before = len(self.refused)
        if verb == "publish":
            await self.nc.publish(subject, b"")
        else:
            await self.nc.subscribe(subject)
        await self.nc.publish(self.fence.subject, b"")
        await self.fence.next_msg(timeout=5)
        return len(self.refused) == before


@asynccontextmanager
async def as_user(url: str, user: str, **options: Any) -> AsyncIterator[User]:
    """Connected as `user`, with its own inboxes."""
    refused: list[str] = []

    async def heard(error: Exception) -> None:
        refused.append(str(error))

    nc = await nats.connect(
        url, user=user, password=password(user), error_cb=heard, allow_reconnect=False,
        **{"inbox_prefix": subjects.inbox(user), **options},
    )  # fmt: skip
    try:
        fence = await nc.subscribe(f"health.{user}.{uuid4().hex}")
        yield User(nc, user, fence, refused)
    finally:
        await nc.close()


def named(settings: Settings, user: str, **changed: Any) -> Settings:
    """`settings` of the process of `user`."""
    return settings.model_copy(update={"nats_user": user, "nats_password": password(user), **changed})
