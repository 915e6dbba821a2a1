from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from perdure.embedded import supervised
from perdure.embedded.nats_server import NatsServer
from perdure.embedded.offline_server import OfflineServer
from perdure.embedded.postgres_server import PostgresServer
from perdure.embedded.redis_server import RedisServer
from perdure.embedded.server import EmbeddedServer
from perdure.errors import SetupError
from tests.support import temporary_folder

KINDS = [NatsServer, PostgresServer, RedisServer, OfflineServer]


def make(kind: type[EmbeddedServer], home: Path, pristine: Path, port: int | None = None) -> EmbeddedServer:
    if kind is PostgresServer:
        return PostgresServer(home, port=port, fast=True, template=pristine)
    return kind(home, port=port)


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_folder("ports") as folder:
        yield folder


@pytest.fixture
def pristine(postgres_folders: tuple[Path, Path], shared_postgres: PostgresServer) -> Path:
    return postgres_folders[1]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
async def stranger(request: pytest.FixtureRequest, home: Path, pristine: Path) -> AsyncIterator[EmbeddedServer]:
    """A server of the same kind that belongs to someone else."""
    server = make(request.param, home / "theirs", pristine)
    await server.start()
    yield server
    await server.stop()


async def test_a_port_taken_after_it_was_looked_at_is_left_to_the_stranger(
    stranger: EmbeddedServer, home: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervised, "is_free", lambda _port: True)
    ours = make(type(stranger), home / "ours", pristine, stranger.port)
    await ours.start()
    try:
        assert ours.running
        assert ours.port != stranger.port
        assert ours.note == f"port {stranger.port} is taken, uses {ours.port}"
        assert await ours.ready()
    finally:
        await ours.stop()
    assert await stranger.ready()


async def test_a_stranger_of_the_same_kind_is_never_taken_for_ours(
    stranger: EmbeddedServer, home: Path, pristine: Path
):
    ours = make(type(stranger), home / "ours", pristine)
    await ours.start()
    try:
        ours.port, mine = stranger.port, ours.port
        assert not await ours.ready()
        ours.port = mine
        assert await ours.ready()
    finally:
        await ours.stop()


async def test_nothing_is_made_in_the_postgres_of_a_stranger(home: Path, pristine: Path):
    theirs = PostgresServer(home / "theirs", fast=True, template=pristine)
    await theirs.start()
    connection = await asyncpg.connect(theirs.url_of("postgres"))
    await connection.execute("DROP DATABASE perdure")
    ours = PostgresServer(home / "ours", fast=True, template=pristine)
    await ours.start()
    try:
        ours.port = theirs.port
        assert not await ours.ready()
        assert await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = 'perdure'") == 0
    finally:
        await connection.close()
        await ours.stop()
        await theirs.stop()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_a_port_that_a_stranger_took_while_the_server_was_down_is_said_and_kept_for_later(
    kind: type[EmbeddedServer], home: Path, pristine: Path
):
    ours = make(kind, home, pristine)
    await ours.start()
    port = ours.port
    await ours.kill()
    try:
        with closing(socket.socket()) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            taken.listen()
            with pytest.raises(SetupError, match=rf"another program took {ours.name}'s port {port} .* end that prog"):
                await ours.start()
            assert not ours.running
        await ours.start()
        assert ours.port == port
    finally:
        await ours.stop()
