"""Postgres roles of the platform: `deploy/postgres/roles.sql` applied, and a role for each agent."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from typing import Final

import asyncpg

from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.platform_files import platform_root
from perdure.store.postgres import connect_direct, unreachable
from perdure.store.queries import load_queries

_SQL = load_queries("roles.sql")
_MEMORY = load_queries("memory.sql")
SERVICES: Final = ("config-manager", "scheduler", "gateway", "operator")
ITERATIONS: Final = 4096  # what Postgres itself takes
LONGEST: Final = 63  # bytes of a role's name
_PREFIX: Final = "perdure_agent_"


def role_of(user: str) -> str:
    """The role of a service or an agent. Raises `ValueError` for an agent's name that no role can have."""
    if user in SERVICES:
        return f"perdure_{user.replace('-', '_')}"
    if len(_PREFIX + user) > LONGEST:
        raise ValueError(f"agent {user!r} has too long a name for a role of its own: at most {LONGEST - len(_PREFIX)}")
    return _PREFIX + user


def verifier(password: str, salt: bytes | None = None) -> str:
    """What Postgres keeps of a password (SCRAM-SHA-256): made here, so that the password goes nowhere."""
    salt = salt or os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    said = (base64.b64encode(each).decode() for each in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(ITERATIONS, *said)


async def apply_roles(settings: Settings, agents: Sequence[str], passwords: Mapping[str, str]) -> list[str]:
    """Make the roles of the services and of `agents`, give each what it needs and nothing more; their names.

    Run it as the owner of the schema, after each `migrate`; it may be repeated. `passwords` are those of the services
    and agents that get one now. Raises `SetupError` that says what is missing.
    """
    sql = await asyncio.to_thread(lambda: (platform_root() / "deploy" / "postgres" / "roles.sql").read_text("utf-8"))
    try:
        connection = await connect_direct(settings, "roles")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError, ValueError) as error:
        raise SetupError(unreachable(settings, error)) from error
    try:
        may = await connection.fetchrow(_SQL["may_make_roles"])
        if may is None or not may["migrated"]:
            raise SetupError("the tables are not there yet: run `perdure migrate` first, as the same user")
        if not may["owner"]:
            raise SetupError("DATABASE_URL names a user who does not own the tables: use the one of `perdure migrate`")
        if not may["roles"]:
            raise SetupError("this user may not make roles: `ALTER ROLE … CREATEROLE`, or let a superuser do it")
        async with connection.transaction():
            if await connection.fetchval(_MEMORY["available"]):  # agents, who make it on first use, may not any more
                await connection.execute(_MEMORY["create_extension"])
                await connection.execute(_MEMORY["create_table"])
            await connection.execute(sql)
            named = {user: role_of(user) for user in (*SERVICES, *agents)}
            for agent in agents:
                await connection.execute(await connection.fetchval(_SQL["make_agent"], named[agent]))
            for user, word in passwords.items():
                secret = await asyncio.to_thread(verifier, word)
                await connection.execute(await connection.fetchval(_SQL["set_password"], named[user], secret))
    except asyncpg.PostgresError as error:
        raise SetupError(f"the roles were not changed: {error}") from error
    finally:
        await connection.close()
    return list(named.values())
