from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from perdure.embedded.binaries import postgres_folder
from perdure.embedded.postgres_server import PostgresServer
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.migrate import check, migrate, read_migrations
from perdure.store.platform_files import platform_root


@pytest.fixture
async def empty(shared_postgres: PostgresServer) -> AsyncIterator[Settings]:
    name = f"empty_{uuid4().hex}"
    admin = await asyncpg.connect(shared_postgres.url_of("postgres"))
    await admin.execute(f"CREATE DATABASE {name}")
    yield Settings(database_url=shared_postgres.url_of(name))
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE first (n int);\nINSERT INTO first VALUES (1);\n")
    (tmp_path / "0002_second.sql").write_text("ALTER TABLE first ADD m int;\n")
    return tmp_path


async def rows(settings: Settings, query: str) -> list[tuple]:
    connection = await asyncpg.connect(settings.database_url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_files_are_applied_once_and_in_order(empty: Settings, folder: Path):
    assert await check(empty, folder=folder) == ["0001_first.sql", "0002_second.sql"]
    assert await migrate(empty, folder=folder) == ["0001_first.sql", "0002_second.sql"]
    assert await migrate(empty, folder=folder) == []
    assert await check(empty, folder=folder) == []
    assert await rows(empty, "SELECT version, name FROM schema_migrations ORDER BY version") == [
        (1, "0001_first.sql"),
        (2, "0002_second.sql"),
    ]


async def test_checking_changes_nothing(empty: Settings, folder: Path):
    await check(empty, folder=folder)
    assert await rows(empty, "SELECT to_regclass('schema_migrations')") == [(None,)]


async def test_migrators_at_the_same_moment_take_turns(empty: Settings, folder: Path):
    applied = await asyncio.gather(*(migrate(empty, folder=folder) for _ in range(8)))
    assert sorted(map(len, applied)) == [0] * 7 + [2]
    assert await rows(empty, "SELECT n FROM first") == [(1,)]


async def test_a_failing_file_leaves_nothing_of_itself_and_all_before_it(empty: Settings, folder: Path):
    (folder / "0003_broken.sql").write_text("CREATE TABLE third (n int); SELECT 1 / 0;")
    with pytest.raises(SetupError, match=r"0003_broken\.sql failed.*division by zero"):
        await migrate(empty, folder=folder)
    assert await rows(empty, "SELECT to_regclass('third'), to_regclass('first')::text") == [(None, "first")]
    assert await check(empty, folder=folder) == ["0003_broken.sql"]


async def test_a_file_changed_after_it_was_applied_is_refused(empty: Settings, folder: Path):
    await migrate(empty, folder=folder)
    (folder / "0001_first.sql").write_text("CREATE TABLE first (n bigint);")
    for act in (migrate, check):
        with pytest.raises(SetupError, match=r"0001_first\.sql was changed"):
            await act(empty, folder=folder)


async def test_an_applied_file_that_is_gone_is_refused(empty: Settings, folder: Path):
    await migrate(empty, folder=folder)
    (folder / "0001_first.sql").unlink()
    with pytest.raises(SetupError, match=r"0001_first\.sql was applied .* file is gone"):
        await migrate(empty, folder=folder)


async def test_a_file_before_one_that_is_applied_is_refused(empty: Settings, folder: Path):
    (folder / "0002_second.sql").rename(folder / "0003_second.sql")
    await migrate(empty, folder=folder)
    (folder / "0002_late.sql").write_text("SELECT 1;")
    with pytest.raises(SetupError, match=r"0002_late\.sql comes before 0003_second\.sql"):
        await migrate(empty, folder=folder)


def test_two_files_with_one_number_are_refused(folder: Path):
    (folder / "0002_other.sql").write_text("SELECT 1;")
    with pytest.raises(SetupError, match=r"0002_second\.sql and 0002_other\.sql have the same number"):
        read_migrations(folder)


def test_a_file_with_a_transaction_of_its_own_is_refused(folder: Path):
    (folder / "0003_own.sql").write_text("BEGIN;\nSELECT 1;\nCOMMIT;\n")
    with pytest.raises(SetupError, match=r"0003_own\.sql begins or ends a transaction"):
        read_migrations(folder)


def test_the_word_begin_inside_a_function_is_no_transaction(folder: Path):
    body = "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$\nBEGIN\n  RETURN 1;\nEND;\n$$;\n-- COMMIT;\n"
    (folder / "0003_function.sql").write_text(body)
    assert len(read_migrations(folder)) == 3


def test_a_file_with_another_name_is_refused(folder: Path):
    (folder / "3_short.sql").write_text("SELECT 1;")
    with pytest.raises(SetupError, match=r"3_short\.sql: a migration is named NNNN_what\.sql"):
        read_migrations(folder)


async def test_a_database_that_is_not_there_is_a_clear_error_without_its_password(folder: Path):
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:9/x cannot be used") as error:
        await migrate(Settings(database_url="postgresql://me:hush@127.0.0.1:9/x"), folder=folder)
    assert "hush" not in str(error.value)


def test_psql_can_run_each_migration_of_the_project(shared_postgres: PostgresServer):
    psql = [str(postgres_folder() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
    name = f"psql_{uuid4().hex}"
    subprocess.run([*psql, "-c", f"CREATE DATABASE {name}", shared_postgres.url_of("postgres")], check=True)
    try:
        for path in sorted((platform_root() / "migrations").glob("*.sql")):
            subprocess.run([*psql, "-1", "-f", str(path), shared_postgres.url_of(name)], check=True)
    finally:
        subprocess.run([*psql, "-c", f"DROP DATABASE {name}", shared_postgres.url_of("postgres")], check=True)


# -- what a migration does to a database that is in use ----------------------------------------------------------------

RETENTION = "0043_retention.sql"
PROCESS = (
    "INSERT INTO processes (process_id, agent_name, instance_id, lock_key, postmaster_started, lease_until)"
    " VALUES ('p', 'mailer', 'i', 7, pg_postmaster_start_time(), now() + interval '1 hour')"
)


async def before_retention(empty: Settings, folder: Path) -> None:
    """A database as it was before its journal had shelves."""
    for file in (platform_root() / "migrations").glob("*.sql"):
        if file.name < RETENTION:
            (folder / file.name).write_bytes(file.read_bytes())
    await migrate(empty, folder=folder)


async def test_agents_of_before_are_told_to_stop_before_the_journal_changes(empty: Settings, tmp_path: Path):
    await before_retention(empty, tmp_path)
    agent = await asyncpg.connect(empty.database_url)
    try:
        await agent.execute(PROCESS)
        assert await agent.fetchval("SELECT pg_try_advisory_lock(1346719297, 7)")
        with pytest.raises(SetupError, match=r"mailer \(p\)\. Stop them and migrate again"):
            await migrate(empty)
        assert RETENTION in await check(empty), "and nothing is changed"
        assert await agent.fetchval("SELECT count(*) FROM journal") == 0
    finally:
        await agent.close()
    await migrate(empty)  # its lock is gone with it, though its lease is not over
    with pytest.raises(asyncpg.UndefinedTableError):  # an agent of before cannot start on this database
        await rows(empty, "SELECT nextval('process_lock_keys')")


async def test_runs_of_before_keep_their_journals_and_are_kept_for_ever(empty: Settings, tmp_path: Path):
    await before_retention(empty, tmp_path)
    await rows(
        empty,
        "INSERT INTO runs (run_id, agent_name, task, task_hash, status, epoch, finished_at)"
        " VALUES ('old', 'a', '1', 'h', 'completed', 1, now() - interval '400 days')",
    )
    await rows(
        empty,
        "INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, epoch, started_at, finished_at)"
        " VALUES ('old', 1, '1', 'step', 's', 'h', 'ok', 1, now(), now())",
    )
    before = await rows(empty, "SELECT run_id, seq, name FROM journal")
    assert RETENTION in await migrate(empty)
    assert await rows(empty, "SELECT run_id, seq, name FROM journal") == before
    assert await rows(empty, "SELECT run_id, name, process FROM run_steps") == [("old", "s", None)]
    assert await rows(empty, "SELECT retention_days('a'), shelf_for('a')") == [(0, 0)]
    with pytest.raises(asyncpg.UniqueViolationError):
        await rows(empty, "INSERT INTO journal SELECT * FROM journal")


async def test_a_new_database_keeps_runs_for_ninety_days(empty: Settings):
    await migrate(empty)
    assert await rows(empty, "SELECT retention_days('a')") == [(90,)]
