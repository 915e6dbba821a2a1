"""Redis: a cache, and more than that only where configuration is written in it."""

from __future__ import annotations

from urllib.parse import urlsplit

from redis.exceptions import NoPermissionError, RedisError

from perdure.doctor.findings import Finding, Notes
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.redis import create_redis

LEAST_VERSION = (6, 2)
FULL = 0.9  # of maxmemory


async def look(settings: Settings) -> list[Finding]:
    """Whether it answers, its version, what it does when it is full, and what it keeps over a restart."""
    notes = Notes("redis")
    try:
        client = create_redis(settings)
    except SetupError as error:
        notes.error("answers", str(error), "Set REDIS_URL to redis://host:6379/0 (rediss:// for TLS)")
        return notes.findings
    try:
        info = await client.info()
    except NoPermissionError as error:
        notes.skip("server", f"this user may not look at it ({error})")
        return notes.findings
    except (RedisError, OSError) as error:
        where = urlsplit(settings.redis_url).netloc.rpartition("@")[2]
        notes.error(
            "answers",
            f"Redis at {where} cannot be used: {str(error) or type(error).__name__}",
            "Start it, or check REDIS_URL and its password; work goes on without it, rate limits are kept by each "
            "process alone, and settings that are written in Redis are not taken up",
        )
        return notes.findings
    finally:
        await client.aclose()
    _judge(notes, settings, info)
    return notes.findings


def _judge(notes: Notes, settings: Settings, info: dict[str, object]) -> None:
    said = str(info.get("redis_version", "0"))
    version = tuple(int(part) for part in said.split(".")[:2] if part.isdigit())
    if version < LEAST_VERSION:
        notes.error("version", f"Redis {said}", "Use Redis 6.2 or newer")
    else:
        notes.ok("version", said)
    source = settings.config_store == "redis"
    policy, most = str(info.get("maxmemory_policy", "noeviction")), int(str(info.get("maxmemory", 0)))
    if policy != "noeviction":
        say = notes.error if source else notes.warn
        what = "settings that are written in it" if source else "counters of rate limits and queues of the day"
        say(
            "eviction",
            f"maxmemory-policy is {policy}: when it is full, Redis drops {what}",
            "`redis-cli config set maxmemory-policy noeviction`, and the same in redis.conf",
        )
    else:
        notes.ok("eviction", "noeviction")
    if not int(str(info.get("aof_enabled", 0))) and source:
        notes.error(
            "appendonly",
            "configuration is written in Redis (PERDURE_CONFIG_STORE=redis), and Redis keeps no log of it",
            "`redis-cli config set appendonly yes`, and the same in redis.conf",
        )
    else:
        notes.ok("appendonly", "yes" if int(str(info.get("aof_enabled", 0))) else "no; Redis is a cache here")
    used = int(str(info.get("used_memory", 0)))
    if most and used > FULL * most:
        notes.warn("memory", f"{used} of {most} bytes are used", "Raise maxmemory of Redis")
