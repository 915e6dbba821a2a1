"""deploy/credentials.py: what it makes lets each part in at real servers, as itself, and is kept."""

from __future__ import annotations

import asyncio
import json
import runpy
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nats
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from perdure.embedded.redis_server import RedisServer
from perdure.store import roles
from tests.docs import ROOT
from tests.secured import SecuredNats, redis_answers
from tests.support import temporary_folder

PROGRAM = ROOT / "deploy" / "credentials.py"
AGENTS = ("assistant", "activation")
PARTS = ("config-manager", "scheduler", "gateway", "console", "operator", *AGENTS)


@pytest.fixture
def folder() -> Iterator[Path]:
    """As the containers' volumes are mounted."""
    with temporary_folder("credentials") as made:
        for name in ("owner", "nats", "postgres", "redis", "grafana", *PARTS):
            (made / name).mkdir()
        yield made


@pytest.fixture
def asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the program as its container does: (exit code, what it said, what it complained of)."""

    def ask(*words: str, **environment: str) -> tuple[int, str, str]:
        for name, value in {"PERDURE_NAMESPACE": "", **environment}.items():
            monkeypatch.setenv(name, value)
        code = runpy.run_path(str(PROGRAM))["main"](list(words), folder)
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask


def told(folder: Path, part: str) -> dict[str, str]:
    """The variables that the entrypoint of the image gives to a part."""
    env = folder / part / "env"
    script = (ROOT / "deploy" / "entrypoint.sh").read_text().replace("/run/perdure/env", str(env))
    said = subprocess.run(
        ["sh", "-c", script, "entrypoint.sh", "env", "-0"], env={}, capture_output=True, text=True, check=True
    )
    return dict(each.split("=", 1) for each in said.stdout.split("\0") if "=" in each and not each.startswith("PWD="))


async def test_each_part_gets_in_as_itself_and_nobody_else_does(folder, asked):
    assert asked("make", *AGENTS)[0] == 0
    # As docker-compose.yml mounts them, but for the port of its health check and the place of its data.
    config = folder / "nats"
    (config / "credentials").mkdir()
    (config / "users.conf").rename(config / "credentials" / "users.conf")
    plain = (ROOT / "deploy" / "nats" / "nats.conf").read_text().splitlines()
    kept = [line for line in plain if not line.strip().startswith(("http_port", "store_dir"))]
    (config / "nats.conf").write_text("\n".join(kept))
    shutil.copy(ROOT / "deploy" / "nats" / "compose.conf", config)
    server = SecuredNats(folder / "nats-home", config / "compose.conf", {})
    redis = _Redis(folder / "redis-home", folder / "redis" / "users.acl")
    await server.start()
    await redis.start()
    try:
        for part in PARTS:
            said = told(folder, part)
            assert urlsplit(said["NATS_URL"]).username == part
            await (await nats.connect(_here(said["NATS_URL"], server.port), allow_reconnect=False)).close()
            if part != "console":
                assert urlsplit(said["DATABASE_URL"]).username == roles.role_of(part)
                async with Redis.from_url(_here(said["REDIS_URL"], redis.port)) as client:
                    assert await client.ping()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert json.loads((await reader.readline()).removeprefix(b"INFO "))["auth_required"] is True
        writer.close()
        await writer.wait_closed()
        async with Redis(port=redis.port) as nobody:
            with pytest.raises(AuthenticationError):
                await nobody.ping()
        async with Redis(port=redis.port, username="health", password="any") as health:
            assert await health.ping()
            with pytest.raises(NoPermissionError):
                await health.get("x")
    finally:
        await server.kill()
        await redis.kill()


def test_passwords_are_made_once_and_an_agent_more_leaves_them_as_they_are(folder, asked):
    assert asked("make", *AGENTS)[0] == 0
    before = {part: told(folder, part) for part in (*PARTS, "owner")}
    refused = asked("make", *AGENTS, "orders")
    assert refused[0] == 1
    assert "orders: give each a volume" in refused[2]
    (folder / "orders").mkdir()
    assert asked("make", *AGENTS, "orders")[0] == 0
    after = {part: told(folder, part) for part in PARTS}
    assert after == {part: before[part] for part in PARTS}
    assert told(folder, "owner") == before["owner"] | {
        "POSTGRES_PASSWORD_ORDERS": urlsplit(told(folder, "orders")["DATABASE_URL"]).password
    }
    words = [urlsplit(value).password for said in after.values() for value in said.values() if "://" in value]
    assert len(words) == len(set(words)), "no two alike"


def test_the_owner_is_told_the_password_of_each_role_and_a_password_of_ones_own_is_taken(folder, asked):
    own = "it's $HOME/ @:"
    assert asked("make", *AGENTS, POSTGRES_PASSWORD=own, PERDURE_GATEWAY_SECRET=own * 3)[0] == 0
    said = told(folder, "owner")
    assert (folder / "postgres" / "password").read_text() == own
    assert said["DATABASE_URL"] == "postgresql://perdure:it%27s%20%24HOME%2F%20%40%3A@postgres:5432/perdure"
    assert (
        told(folder, "gateway")["PERDURE_GATEWAY_SECRET"]
        == told(folder, "operator")["PERDURE_GATEWAY_SECRET"]
        == own * 3
    )
    for user in ("config-manager", "scheduler", "gateway", "operator", *AGENTS):
        password = urlsplit(told(folder, user)["DATABASE_URL"]).password
        assert said[f"POSTGRES_PASSWORD_{user.upper().replace('-', '_')}"] == password
    kept = folder / "owner" / "passwords.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_people_are_shown_the_way_in_from_outside(folder, asked):
    assert "there are none yet" in asked("show")[2]
    assert asked("make", *AGENTS)[0] == 0
    said = asked("show", NATS_PORT="4999")[1]
    shown = dict(line.removeprefix("export ").split("=", 1) for line in said.splitlines())
    inside = told(folder, "operator")
    assert shown["NATS_URL"] == inside["NATS_URL"].replace("@nats:4222", "@127.0.0.1:4999")
    assert shown["DATABASE_URL"] == inside["DATABASE_URL"].replace("@postgres:", "@127.0.0.1:")
    assert urlsplit(shown["NATS_CLIENT_URL"]).username == "client"
    assert asked("look")[2] == "credentials: look is neither make nor show\n"


def test_without_credentials_the_entrypoint_is_the_command_alone():
    said = subprocess.run(
        ["sh", str(ROOT / "deploy" / "entrypoint.sh"), "printf", "%s|", "a b", "$x"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "a b|$x|"


class _Redis(RedisServer):
    """redis-server with the users that were made."""

    def __init__(self, home: Path, users: Path) -> None:
        super().__init__(home)
        self._users = users

    def command(self) -> list[str]:
        return [*super().command(), "--aclfile", str(self._users)]

    async def ready(self) -> bool:
        return await redis_answers(Redis(port=self.port, username="health", password="any"))


def _here(url: str, port: int) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()
