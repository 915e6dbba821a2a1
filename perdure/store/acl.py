"""Users of Redis: which keys and commands each part of the platform may use, and how an `aclfile` says it.

Redis holds no truth: what a user could spoil there is a cache, a rate limit or a ticket, and its own alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from perdure.settings import Settings

CONNECT: Final = ("+@connection", "-@dangerous", "+client|setname")  # to be known, to ping, to choose a database
SCRIPTS: Final = ("+eval", "+evalsha", "+script|load", "+time")
SHORTEST: Final = 8  # characters of a password


@dataclass(frozen=True, slots=True)
class Access:
    """What one user may touch (patterns of keys and channels), and by which commands."""

    user: str
    keys: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


def services(*, prefix: str = "config:") -> list[Access]:
    """The users of the services. `prefix`: what settings in Redis begin with, where it is their source."""
    source = (
        *("+config|get", "+multi", "+exec", "+discard", "+watch", "+unwatch", "+psubscribe", "+punsubscribe"),
        *("+type", "+mget", "+exists", "+hincrby", "+hdel", "+hgetall", "+del", "+strlen"),
    )
    manager = ("+get", "+set", "+hget", "+hset", "+scan", *SCRIPTS, *source)
    return [
        Access("config-manager", ("perdure:config*", f"{prefix}*"), ("__key*",), manager),
        Access("scheduler"),
        Access("gateway", ("perdure:http-rate:*", "perdure:ticket:*"), (), ("+get", "+set", "+getdel", *SCRIPTS)),
    ]


def agent(name: str) -> Access:
    """The user of one agent: states of runs, rates of models, and the last good configuration, its own alone."""
    lists = ("+llen", "+lindex", "+lrange", "+rpush", "+ltrim", "+pexpire", "+expire")
    return Access(
        name,
        ("perdure:run:*", "perdure:rate:*", f"perdure:config:lkg:{name}"),
        (),
        ("+get", "+set", "+del", "+hset", "+hgetall", *lists, *SCRIPTS),
    )


def render(agents: Sequence[str], settings: Settings, environment: Mapping[str, str]) -> str:
    """An `aclfile` with these users alone. Raises `ValueError` for one whose password is not in the environment."""
    space = f"ns:{settings.namespace}:" if settings.namespace else ""
    users = [*services(prefix=settings.config_redis_prefix), *(agent(each) for each in agents)]
    lines = ["user default off"]
    for each in users:
        variable = f"REDIS_PASSWORD_{each.user.upper().replace('-', '_')}"
        word = environment.get(variable, "")
        if len(word) < SHORTEST:
            raise ValueError(f"{variable} is not set, or has fewer than {SHORTEST} characters: it is the password")
        said = (
            f"#{hashlib.sha256(word.encode()).hexdigest()}",
            *(f"~{space}{key}" for key in each.keys),
            "resetchannels",
            *(f"&{channel}" for channel in each.channels),
            *("-@all", *CONNECT, *each.commands),
        )
        lines.append(f"user {each.user} on {' '.join(said)}")
    return "\n".join(lines) + "\n"
