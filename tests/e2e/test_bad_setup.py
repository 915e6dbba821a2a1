"""What is wrong with a machine or its environment is said in one line that names it and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perdure.embedded import processes as processes_module
from perdure.embedded.nats_server import NatsServer
from perdure.embedded.platform import Platform
from perdure.embedded.postgres_server import PostgresServer
from perdure.embedded.processes import ProcessSpec, declared_processes
from perdure.embedded.server import ask
from perdure.embedded.state import read_state
from perdure.errors import SetupError
from perdure.settings import DEFAULT_NATS_URL, Settings
from tests.command import perdure
from tests.support import temporary_folder


class PlainNats(NatsServer):
    """A nats-server without JetStream."""

    def command(self) -> list[str]:
        return super().command()[: -len(("--jetstream", "--store_dir", "its folder"))]

    async def ready(self) -> bool:
        return self.id.encode() in await ask(self.port, b"")


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_folder("bad") as folder:
        yield folder


def platform(settings: Settings, *specs: ProcessSpec) -> Platform:
    return Platform(settings, processes=specs, free_ports=True, offline=False, fast=True)


@pytest.mark.parametrize("how", [(), ("--detach",)])
async def test_a_home_that_cannot_be_written_is_named(home: Path, how: tuple[str, ...]):
    (home / "file").touch()
    code, _, err = await perdure(home / "file" / "data", "up", *how)
    assert code == 1
    assert str(home / "file" / "data") in err
    assert "Set PERDURE_HOME to a folder of yours" in err
    assert "Traceback" not in err


async def test_why_a_detached_start_failed_is_said(home: Path):
    code, _, err = await perdure(home, "up", "--detach", DATABASE_URL="postgresql://me:hidden@127.0.0.1:9/none")
    assert code == 1
    assert "Postgres at 127.0.0.1:9/none cannot be used" in err
    assert "Check DATABASE_URL" in err
    assert "Traceback" not in err
    assert "hidden" not in err


async def test_a_database_that_is_not_there_is_named_with_how_to_make_it(home: Path, shared_postgres: PostgresServer):
    settings = Settings(home=home, database_url=shared_postgres.url_of("nowhere"))
    with pytest.raises(SetupError, match=r'database "nowhere" does not exist\. Make it with `createdb`'):
        await platform(settings).start()


@pytest.mark.parametrize("command", [("key", "list"), ("audit", "list")])
async def test_a_database_without_tables_is_said_with_the_command_that_makes_them(
    home: Path, shared_postgres: PostgresServer, command: tuple[str, ...]
):
    code, _, err = await perdure(home, *command, DATABASE_URL=shared_postgres.url_of("postgres"))
    assert code == 1
    assert "run `perdure migrate`" in err
    assert "Traceback" not in err


async def test_a_nats_without_jetstream_is_refused_before_anything_is_started(home: Path):
    server = PlainNats(home / "given")
    await server.start()
    try:
        with pytest.raises(SetupError, match=r"JetStream.*nats-server -js"):
            await platform(Settings(home=home, nats_url=server.url)).start()
        assert not (home / "postgres").exists()
        assert read_state(home) is None
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("code", "said"),
    [("def broken(:\n", r"broken\.py, line 1: "), ("1 / 0\n", r"broken\.py, line 1: ZeroDivisionError")],
)
async def test_a_broken_agent_file_is_named_with_its_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
):
    (home / "agents").mkdir()
    (home / "agents" / "broken.py").write_text(code)
    monkeypatch.setattr(processes_module, "platform_root", lambda: home)
    settings = Settings(home=home / "data", agents="broken")
    broken = replace(declared_processes(settings)[-1], after=())
    with pytest.raises(SetupError, match=rf"agent-broken ended with exit code 1: .*{said}"):
        await platform(settings, broken).start()


async def test_a_variable_with_a_value_that_cannot_be_used_is_named(home: Path):
    code, _, err = await perdure(home, "up", PERDURE_POOL_SIZE="many", PERDURE_LEASE_SECONDS="0")
    assert code == 1
    assert "PERDURE_POOL_SIZE: Input should be a valid integer" in err
    assert "PERDURE_LEASE_SECONDS: Input should be greater than" in err
    assert "Traceback" not in err


async def test_a_nats_url_that_names_no_server_is_refused(home: Path):
    with pytest.raises(SetupError, match=r"it names no server\. Check NATS_URL"):
        await platform(Settings(home=home, nats_url=",")).start()


def test_an_empty_address_is_one_that_was_not_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NATS_URL", "")
    monkeypatch.setenv("PERDURE_AGENTS", "")
    settings = Settings()
    assert settings.nats_url == DEFAULT_NATS_URL
    assert "nats_url" not in settings.model_fields_set
    assert settings.agents == ""
