"""Postgres: the server, the schema, its room for connections, and whether what is sealed in it can be opened."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg

from perdure.config.secrets import resolve_secret
from perdure.doctor.findings import Notes, split_advice
from perdure.doctor.machine import judge_clock
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store import migrate
from perdure.store.postgres import Connection, connect_direct, unreachable
from perdure.store.queries import load_queries
from perdure.store.sealing import vault_for
from perdure.store.vault import Spot, Unreadable

LEAST_VERSION = 160_000
BESIDE_POOL = 2  # connections that a process holds beside its pool: its lock, or LISTEN
FULL = 0.9
OLD = 30.0  # seconds after which a run that nobody claims is worth a word
_SQL = load_queries("doctor.sql")


async def open_connection(settings: Settings, notes: Notes) -> Connection | None:
    """A connection, or the finding that there is none."""
    try:
        return await connect_direct(settings, "doctor")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError, ValueError, SetupError) as error:
        text = str(error) if isinstance(error, SetupError) else unreachable(settings, error)
        notes.error("answers", *split_advice(text))
        return None


async def look(connection: Connection, settings: Settings, notes: Notes, *, processes: int, now: float) -> bool:
    """Everything on a connection that is open; whether the schema is there. `now` is this machine's clock at the call.

    `processes` is how many of the platform's processes are known to run.
    """
    began = time.monotonic()
    server = await connection.fetchrow(_SQL["server"])
    assert server is not None  # noqa: S101 - a SELECT without FROM has a row
    judge_clock(notes, "Postgres", server["now"] - now - (time.monotonic() - began) / 2)
    _server(server, notes)
    await _room(connection, settings, server, notes, processes)
    if not await _migrations(settings, notes):
        return False
    await _references(connection, notes)
    await _sealed(connection, settings, notes)
    return True


def _server(server: Any, notes: Notes) -> None:
    if server["number"] < LEAST_VERSION:
        notes.error("version", f"Postgres {server['version']}", "Use Postgres 16 or newer")
    else:
        notes.ok("version", server["version"])
    if server["standby"]:
        notes.error(
            "primary", "DATABASE_URL names a standby, which takes no writes", "Name the primary in DATABASE_URL"
        )
    for name in ("fsync", "full_page_writes"):
        if server[name] == "off":
            notes.warn(
                "durability",
                f"{name} is off: what was accepted is lost when the machine stops",
                f"`ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();`",
            )
    if server["autovacuum"] == "off":
        notes.warn(
            "vacuum",
            "autovacuum is off: tables and indexes grow without end",
            "`ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf();`",
        )


async def _room(connection: Connection, settings: Settings, server: Any, notes: Notes, processes: int) -> None:
    sessions = await connection.fetchrow(_SQL["sessions"])
    assert sessions is not None  # noqa: S101 - a count has a row
    room = server["max_connections"] - server["reserved"]
    wanted = processes * (settings.pool_size + BESIDE_POOL)
    raise_it = "Raise max_connections of Postgres (a restart), lower PERDURE_POOL_SIZE"
    if wanted > room:
        notes.error(
            "connections",
            f"{processes} processes may open {wanted} connections (PERDURE_POOL_SIZE={settings.pool_size}), and "
            f"Postgres takes {room}",
            f"{raise_it} to at most {max(2, room // max(processes, 1) - BESIDE_POOL)}, or put a pooler before it",
        )
    elif sessions["used"] > FULL * room:
        notes.warn("connections", f"{sessions['used']} of {room} are in use", f"{raise_it}, or find who holds them")
    else:
        notes.ok("connections", f"{sessions['used']} of {room} are in use, the platform opens at most {wanted}")
    if sessions["old"]:
        notes.warn(
            "transactions",
            f"{sessions['old']} have been open for more than an hour: nothing behind them can be vacuumed",
            "Find them: `SELECT pid, application_name, query FROM pg_stat_activity WHERE xact_start < now() - "
            "interval '1 hour'`, and end them with `SELECT pg_terminate_backend(pid)`",
        )


async def _migrations(settings: Settings, notes: Notes) -> bool:
    try:
        pending = await migrate.check(settings)
    except SetupError as error:
        notes.error("migrations", *split_advice(str(error)))
        return True  # the tables are there: of another release, or changed
    except asyncpg.InsufficientPrivilegeError as error:
        notes.skip("migrations", f"this user may not look at them ({error})")
        return True
    if pending:
        notes.error("migrations", f"{len(pending)} are not applied: {', '.join(pending)}", "Run `perdure migrate`")
        return False
    notes.ok("migrations", "all are applied, none was changed")
    return True


async def _references(connection: Connection, notes: Notes) -> None:
    """Secrets that settings of agents refer to, as far as this environment can tell."""
    missing = []
    try:
        rows = await connection.fetch(_SQL["references"])
    except asyncpg.InsufficientPrivilegeError:
        return notes.skip("secrets", "this user may not read agent_configurations")
    for row in rows:
        try:
            await resolve_secret(row["config_value"])
        except (SetupError, ValueError) as error:
            missing.append((row["agent_name"], row["config_key"], str(error)))
    for agent, key, why in missing:
        notes.warn(
            "secrets",
            f"{agent}.{key}: {why}",
            f"Set it where the processes of {'the agents' if agent == '*' else agent} run (here it need not be), or "
            f"change the reference: `perdure config set {agent} {key}=secret://env/NAME`",
        )
    if rows and not missing:
        notes.ok("secrets", f"{len(rows)} references of settings can be read here")
    return None


async def _sealed(connection: Connection, settings: Settings, notes: Notes) -> None:
    try:
        vault = await vault_for(settings)
        rows = await connection.fetch(_SQL["sealed"])
    except (SetupError, asyncpg.InsufficientPrivilegeError):
        return  # said by the settings; or not for this user to see
    for row in rows:
        try:
            await vault.ready(texts=[row["task"]])
            await asyncio.to_thread(vault.unseal, row["task"], Spot("task", row["run_id"]))
        except Unreadable as error:
            notes.error(
                "encryption",
                f"what is stored cannot be read here: {error}",
                "Add the key under which it was sealed to PERDURE_ENCRYPTION_KEYS, behind the one that seals now "
                "(docs/how-to/encrypt-what-is-stored.md)",
            )
            return
        except OSError as error:
            _no_key(error, notes)
            return
    try:
        await vault.ready([Spot("task", "doctor")])
    except OSError as error:
        _no_key(error, notes)
        return
    if rows:
        notes.ok("encryption", f"the newest {len(rows)} sealed runs can be opened")


def _no_key(error: OSError, notes: Notes) -> None:
    notes.error(
        "encryption",
        str(error),
        "See whether the service of PERDURE_ENCRYPTION_KMS can be reached from here, and lets this process in",
    )


async def platform(connection: Connection, notes: Notes, *, present: set[str]) -> None:
    """What the rows say of the platform: who broadcasts, what nobody claims, what waits for a person."""
    try:
        broadcasters = await connection.fetchval(_SQL["broadcasters"])
        behind = await connection.fetchrow(_SQL["behind"])
        waiting = await connection.fetch(_SQL["waiting"], OLD)
        stopped = await connection.fetch(_SQL["stopped"])
    except asyncpg.InsufficientPrivilegeError as error:
        return notes.skip("rows", f"this user may not read them ({error})")
    if broadcasters != 1:
        notes.error(
            "broadcaster",
            f"{broadcasters or 'no'} ConfigManagers broadcast changes, not one",
            "Start one: `python -m config_manager`; when it runs, its log says why it does not get the lock",
        )
    elif behind is not None and behind["revisions"] > 0 and behind["seconds"] > OLD:
        notes.warn(
            "broadcaster",
            f"{behind['revisions']} revisions have not been broadcast for {behind['seconds']:.0f} s",
            "Look into the log of the ConfigManager: NATS may refuse it `config.update.*`; a restart broadcasts anew",
        )
    else:
        notes.ok("broadcaster", "one, and it is up to date")
    for row in waiting:
        if row["agent_name"] not in present:
            notes.warn(
                "runs",
                f"{row['runs']} wait for a replica of {row['agent_name']}, and none is there",
                f"Start one: `perdure agent FILE` of {row['agent_name']}",
            )
    for row in stopped:
        notes.warn(
            "runs",
            f"{row['runs']} are {row['status']} and wait for a person, such as {row['run_id']}",
            f"`perdure runs show {row['run_id']}` says why, `perdure runs resume` goes on with it",
        )
    return None
