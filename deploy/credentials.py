"""The credentials of docker-compose.yml: each part a user of its own at NATS, Postgres and Redis.

    python deploy/credentials.py make assistant activation    what each part is given; these are the agents
    python deploy/credentials.py show                         for a shell of the host, to `eval`

Passwords are made on the first start and kept in a volume. Each part has a volume of its own here, /credentials/<part>,
and sees in its container nothing but that one. More agents are more names, and a volume for each.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from perdure.bus import permissions
from perdure.settings import Settings
from perdure.store import acl, roles
from perdure.subjects import agent_name

FOLDER: Final = Path("/credentials")
KEPT: Final = "owner"  # what was made, and what the owner of the schema is told
WITH_REDIS: Final = ("config-manager", "scheduler", "gateway")
# Where `docker compose` publishes what is shown, when nothing else is said.
PORTS: Final = {
    "NATS_PORT": 4222,
    "POSTGRES_PORT": 5432,
    "GATEWAY_PORT": 8000,
    "CONSOLE_PORT": 8080,
    "GRAFANA_PORT": 3000,
}


class Passwords:
    """What was made, by name; what is asked for the first time is made then."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._made: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}

    def of(self, name: str, given: str = "") -> str:
        """The password `name`; `given` takes its place. Letters and digits, for URLs and for files of every server."""
        self._made[name] = given or self._made.get(name) or f"p{secrets.token_hex(24)}"
        return self._made[name]

    def keep(self) -> None:
        """Write them down."""
        write(self._file, json.dumps(self._made, indent=1), mode=0o600)


def write(file: Path, text: str, *, mode: int = 0o644) -> None:
    """The whole of a file at once. Others may read it: who sees its volume is decided by docker-compose.yml."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.replace(file)


def addresses(
    words: Passwords, user: str, *, nats: str = "nats:4222", postgres: str = "postgres:5432"
) -> dict[str, str]:
    """Where a part finds its servers, and as whom."""
    said = {"NATS_URL": f"nats://{user}:{words.of(f'nats {user}')}@{nats}"}
    if user != permissions.CONSOLE:
        role = roles.role_of(user)
        said["DATABASE_URL"] = f"postgresql://{role}:{words.of(f'postgres {user}')}@{postgres}/perdure"
    return said


def make(folder: Path, named: Iterable[str], environment: Mapping[str, str]) -> None:
    """Write what each part is told.

    Raises `ValueError` for a name that no agent can have, and for a part without a volume.
    """
    agents = [agent_name(each) for each in named]
    users = [*permissions.services(), *(permissions.agent(each) for each in agents)]
    parts = [each.user for each in users if each.user != permissions.CLIENT]  # who has no container
    if missing := [
        each for each in ("nats", "postgres", "redis", "grafana", KEPT, *parts) if not (folder / each).is_dir()
    ]:
        raise ValueError(f"{', '.join(missing)}: give each a volume of its own here, as {folder}/<name>")
    words = Passwords(folder / KEPT / "passwords.json")
    in_redis = {user: words.of(f"redis {user}") for user in (*WITH_REDIS, permissions.OPERATOR, *agents)}
    pepper = words.of("gateway secret", environment.get("PERDURE_GATEWAY_SECRET", ""))
    told = {user: addresses(words, user) for user in parts}
    for user, word in in_redis.items():
        told[user]["REDIS_URL"] = f"redis://{user}:{word}@redis:6379/0"
    for user in (permissions.GATEWAY, permissions.OPERATOR):
        told[user]["PERDURE_GATEWAY_SECRET"] = pepper
    owner = words.of("postgres owner", environment.get("POSTGRES_PASSWORD", ""))
    told[KEPT] = {
        "DATABASE_URL": f"postgresql://perdure:{quote(owner, safe='')}@postgres:5432/perdure",
        **{f"POSTGRES_PASSWORD_{_capitals(user)}": words.of(f"postgres {user}") for user in (*roles.SERVICES, *agents)},
    }
    files = {
        "postgres/password": owner,
        "grafana/password": words.of("grafana"),
        "nats/users.conf": _nats_users(users, words),
        "redis/users.acl": _redis_users(agents, in_redis),
        **{f"{user}/env": _variables(said) for user, said in told.items()},
    }
    words.keep()
    for name, text in files.items():
        write(folder / name, text)


def show(folder: Path, environment: Mapping[str, str]) -> str:
    """Where people find the platform from the host: as `operator`, and as `client`, who starts runs alone.

    Raises `ValueError` before the first start.
    """
    kept = folder / KEPT / "passwords.json"
    if not kept.exists():
        raise ValueError("there are none yet: `docker compose up` makes them")
    words = Passwords(kept)
    ports = {name: environment.get(name) or port for name, port in PORTS.items()}
    nats, postgres = (f"127.0.0.1:{ports[name]}" for name in ("NATS_PORT", "POSTGRES_PORT"))
    said = {
        **addresses(words, permissions.OPERATOR, nats=nats, postgres=postgres),
        "NATS_CLIENT_URL": f"nats://{permissions.CLIENT}:{words.of(f'nats {permissions.CLIENT}')}@{nats}",
        "PERDURE_GATEWAY_URL": f"http://127.0.0.1:{ports['GATEWAY_PORT']}",
        "PERDURE_GATEWAY_SECRET": words.of("gateway secret"),
        "PERDURE_CONSOLE_URL": f"http://127.0.0.1:{ports['CONSOLE_PORT']}",
        "GRAFANA_URL": f"http://admin:{words.of('grafana')}@127.0.0.1:{ports['GRAFANA_PORT']}",
    }
    return "".join(f"export {line}\n" for line in _variables(said).splitlines())


def _nats_users(users: list[permissions.Permissions], words: Passwords) -> str:
    """The users with their passwords: here they come from no environment."""
    said = permissions.render(users)
    for each in users:
        variable, word = permissions.password_variable(each.user), words.of(f"nats {each.user}")
        said = said.replace(f"password: ${variable}\n", f'password: "{word}"\n')
    return said


def _redis_users(agents: list[str], words: Mapping[str, str]) -> str:
    """The users; `operator` for `perdure doctor`, and one for the health check, who may ask whether it lives."""
    variables = {f"REDIS_PASSWORD_{_capitals(user)}": word for user, word in words.items()}
    people = f"user {permissions.OPERATOR} on >{words[permissions.OPERATOR]} resetchannels -@all +@connection +info\n"
    return f"{acl.render(agents, Settings(), variables)}{people}user health on nopass resetchannels -@all +ping\n"


def _variables(said: Mapping[str, str]) -> str:
    """As a shell reads them."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in said.items())


def _capitals(user: str) -> str:
    return user.upper().replace("-", "_")


def main(arguments: list[str], folder: Path = FOLDER) -> int:
    """The exit code: 1 with a line that says why."""
    command, *agents = arguments or ["make"]
    try:
        if command == "show":
            sys.stdout.write(show(folder, os.environ))
        elif command == "make":
            make(folder, agents, os.environ)
        else:
            raise ValueError(f"{command} is neither make nor show")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"credentials: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
