"""Servers as the shipped files secure them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from perdure.bus import permissions
from perdure.bus.permissions import Permissions
from perdure.embedded.nats_server import NatsServer
from perdure.settings import Settings
from tests.docs import ROOT

SHIPPED = ROOT / "deploy"
ADMIN = "admin"  # whoever else is on that server, and made its other streams


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
async def restricted_nats(home: Path, *agents: Permissions) -> AsyncIterator[SecuredNats]:
    """nats-server with the shipped files; `users.conf` as the command prints it for these agents."""
    users = [*permissions.services(), *agents]
    folder = home / "nats-config"
    folder.mkdir()
    plain = (SHIPPED / "nats" / "nats.conf").read_text()
    (folder / "nats.conf").write_text(
        "\n".join(line for line in plain.splitlines() if not line.strip().startswith(("http_port", "store_dir")))
    )
    admin = f'users = [\n    {{ user: "{ADMIN}", password: "{password(ADMIN)}" }}\n'
    (folder / "users.conf").write_text(permissions.render(users).replace("users = [\n", admin, 1))
    (folder / "secure.conf").write_text((SHIPPED / "nats" / "secure.conf").read_text())
    server = SecuredNats(home, folder / "secure.conf", passwords(users))
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
        url, user=user, password=password(user), inbox_prefix=permissions.inbox_of(user), error_cb=heard,
        allow_reconnect=False, **options,
    )  # fmt: skip
    try:
        fence = await nc.subscribe(f"health.{user}.{uuid4().hex}")
        yield User(nc, user, fence, refused)
    finally:
        await nc.close()


def named(settings: Settings, user: str, **changed: Any) -> Settings:
    """`settings` of the process of `user`."""
    return settings.model_copy(update={"nats_user": user, "nats_password": password(user), **changed})
