"""Migrations: plain SQL files in order, each one a transaction, and what was applied stays as it was."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import asyncpg
import structlog

from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.platform_files import platform_root
from perdure.store.postgres import Connection, Pool, connect_direct, database_of, unreachable
from perdure.store.queries import load_queries

_FILE = re.compile(r"(?P<version>\d{4})_[a-z0-9_]+\.sql")
# A file that psql can run may hold its own BEGIN; here the runner's transaction is the one that counts.
_OWN_TRANSACTION = re.compile(r"^\s*(BEGIN|COMMIT|ROLLBACK|START\s+TRANSACTION)\s*;", re.IGNORECASE | re.MULTILINE)
_sql = load_queries("migrations.sql")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `version` is its four digits, `checksum` the SHA-256 of its bytes in hex."""

    version: int
    name: str
    checksum: str
    sql: str


def read_migrations(folder: Path) -> list[Migration]:
    """The migrations in `folder`, in order. Raises `SetupError` for a file name or content that cannot work."""
    found: dict[int, Migration] = {}
    for path in sorted(folder.glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise SetupError(f"{path}: a migration is named NNNN_what.sql (lower case, four digits); rename it")
        content = path.read_bytes()
        version = int(match["version"])
        if version in found:
            raise SetupError(f"{path.name} and {found[version].name} have the same number; renumber the newer one")
        sql = content.decode("utf-8")
        if _OWN_TRANSACTION.search(_without_bodies(sql)):
            raise SetupError(f"{path.name} begins or ends a transaction itself; take that line out, each file is one")
        found[version] = Migration(version, path.name, hashlib.sha256(content).hexdigest(), sql)
    return [found[version] for version in sorted(found)]


async def migrate(settings: Settings, *, folder: Path | None = None) -> list[str]:
    """Apply what is missing and return the names of the files applied now, in order.

    Safe to call from many processes at once: they take turns. Raises `SetupError` when the database cannot be
    reached, when an applied file was changed or is gone, or when a file fails (which leaves nothing of that file).
    """
    migrations = await asyncio.to_thread(_read, folder)
    connection = await _connect(settings, make=True)
    try:
        await connection.execute(_sql["lock"])
        try:
            await connection.execute(_sql["create_table"])
            waiting = await _pending(connection, migrations)
            for migration in waiting:
                await _apply(connection, migration)
        finally:
            await connection.execute(_sql["unlock"])
    except asyncpg.InsufficientPrivilegeError as error:
        raise SetupError(f"{error}: let DATABASE_URL name the owner of the tables, who alone migrates") from error
    finally:
        await connection.close()
    return [migration.name for migration in waiting]


async def need_tables(pool: Pool) -> None:
    """Raises `SetupError` for a database that nobody has migrated yet."""
    if not await pool.fetchval(_sql["table_exists"]):
        raise SetupError("the database has no tables of Perdure yet; run `perdure migrate`")


async def check(settings: Settings, *, folder: Path | None = None) -> list[str]:
    """The names of the files not yet applied; nothing is changed. Raises `SetupError` like `migrate`."""
    migrations = await asyncio.to_thread(_read, folder)
    connection = await _connect(settings)
    try:
        if not await connection.fetchval(_sql["table_exists"]):
            return [migration.name for migration in migrations]
        return [migration.name for migration in await _pending(connection, migrations)]
    finally:
        await connection.close()


def _read(folder: Path | None) -> list[Migration]:
    return read_migrations(folder or platform_root() / "migrations")


async def _connect(settings: Settings, *, make: bool = False) -> Connection:
    try:
        connection = await connect_direct(settings, "migrate")
    except asyncpg.InvalidCatalogNameError as error:
        if not settings.namespace or not make:
            raise SetupError(unreachable(settings, error)) from error
        await _make_database(settings)
        connection = await connect_direct(settings, "migrate")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError, ValueError) as error:
        raise SetupError(unreachable(settings, error)) from error
    # A migration may take long, and waiting for another migrator is no fault.
    await connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
    return connection


async def _make_database(settings: Settings) -> None:
    """Make the database of a namespace, from the one that DATABASE_URL names."""
    name = database_of(settings).partition("?")[0].rpartition("/")[2]
    connection = await connect_direct(settings.model_copy(update={"namespace": ""}), "migrate")
    try:
        await connection.execute(await connection.fetchval(_sql["make_database"], unquote(name)))
    except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
        return  # another one was quicker
    except asyncpg.PostgresError as error:
        raise SetupError(
            f"the database {name} of the namespace {settings.namespace} is not there and cannot be made: {error}. "
            f"Make it with `createdb {name}`, or let this user make databases."
        ) from error
    finally:
        await connection.close()
    _log.info("made a database", action="migration.database_made", database=name)


async def _pending(connection: Connection, migrations: Sequence[Migration]) -> list[Migration]:
    """What is not applied yet, after checking that what is applied has not changed."""
    rows = await connection.fetch(_sql["applied"])
    files = {migration.version: migration for migration in migrations}
    for row in rows:
        migration = files.get(row["version"])
        if migration is None or migration.name != row["name"]:
            raise SetupError(
                f"migration {row['name']} was applied to this database but its file is gone; "
                "put the file back, or use a newer release of Perdure"
            )
        if migration.checksum != row["checksum"]:
            raise SetupError(
                f"migration {row['name']} was changed after it was applied to this database; "
                "put the file back as it was, and write the change as a new migration"
            )
    last = rows[-1]["version"] if rows else 0
    waiting = [migration for migration in migrations if migration.version not in {row["version"] for row in rows}]
    for migration in waiting:
        if migration.version < last:
            raise SetupError(
                f"migration {migration.name} comes before {rows[-1]['name']}, which is already applied; "
                "give it the next free number"
            )
    return waiting


async def _apply(connection: Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            # `timeout=None` would mean the connection's own command timeout: an hour is the deadline here.
            await connection.execute(migration.sql, timeout=3600)
            await connection.execute(_sql["record"], migration.version, migration.name, migration.checksum)
    except asyncpg.PostgresError as error:
        raise SetupError(f"migration {migration.name} failed and left nothing behind: {error}") from error
    _log.info("applied a migration", action="migration.applied", migration=migration.name)


def _without_bodies(sql: str) -> str:
    """The SQL without dollar-quoted bodies and comments, where BEGIN is no statement."""
    return re.sub(r"\$(\w*)\$.*?\$\1\$|--[^\n]*", "", sql, flags=re.DOTALL)
