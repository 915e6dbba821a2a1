"""Who is told of a task by push notifications. They stand in Postgres, and the scheduler delivers them."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson
from a2a.types import TaskPushNotificationConfig

from perdure.edge.door import Door
from perdure.errors import InvalidRequest, NotFound, RateLimited
from perdure.store.queries import load_queries
from perdure.store.vault import Spot, vault_of
from perdure.webhooks import check_url
from perdure.webhooks.signing import SHORTEST, sign

_SQL = load_queries("edge.sql")
MOST: Final = 10  # configurations of one task
_ID: Final = re.compile(r"[!-~]{1,128}")
_TEXT: Final = re.compile(r"[ -~]{1,1024}")
_SCHEME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STOPPED: Final = frozenset({"completed", "failed", "cancelled", "dead", "blocked", "needs_review"})


def spot(run_id: str, config_id: str) -> Spot:
    """Where the secrets of a configuration stand."""
    return Spot("push", run_id, config_id)


def checked(door: Door, said: Any) -> dict[str, str]:
    """The secrets of a configuration that can be used. Raises `InvalidRequest` naming the field."""
    if said.id and not _ID.fullmatch(said.id):
        raise InvalidRequest("field 'id': a configuration's id is 1 to 128 printable characters without spaces")
    try:
        check_url(said.url, private=door.settings.callback_private)
    except ValueError as error:
        raise InvalidRequest(f"field 'url': {error}") from None
    if said.token and not _TEXT.fullmatch(said.token):
        raise InvalidRequest("field 'token': at most 1,024 printable characters")
    if len(said.token) < SHORTEST and door.settings.callback_secret is None:
        raise InvalidRequest(
            f"field 'token': give at least {SHORTEST} characters, with which notifications are signed "
            "(or PERDURE_CALLBACK_SECRET is set at the gateway and the scheduler)"
        )
    if len(said.token) >= SHORTEST:
        try:
            sign(said.token, said.id, 0, b"")
        except ValueError as error:
            raise InvalidRequest(f"field 'token': notifications cannot be signed with it: {error}") from None
    secrets = {"token": said.token}
    if said.HasField("authentication"):
        scheme, credentials = said.authentication.scheme, said.authentication.credentials
        if not _SCHEME.fullmatch(scheme) or (credentials and not _TEXT.fullmatch(credentials)):
            raise InvalidRequest("field 'authentication': a scheme like Bearer, and at most 1,024 printable characters")
        secrets |= {"scheme": scheme, "credentials": credentials}
    return {name: value for name, value in secrets.items() if value}


async def keep(door: Door, run_id: str, said: Any, form: str) -> TaskPushNotificationConfig:
    """Tell of this run from now on; of one that has ended already, at once. Raises `InvalidRequest`, `NotFound`."""
    secrets = checked(door, said)
    config_id = said.id or run_id
    vault = vault_of(door.pool)
    await vault.ready([spot(run_id, config_id)])
    sealed = vault.seal(orjson.dumps(secrets).decode(), spot(run_id, config_id))
    async with door.pool.acquire() as connection, connection.transaction():
        run = await connection.fetchrow(_SQL["lock_pushed"], run_id)
        if run is None:
            raise NotFound(f"there is no run {run_id!r}", run_id=run_id)
        kept = await connection.fetchval(_SQL["keep_push"], run_id, config_id, said.url, sealed, form, MOST)
        if kept is None:
            raise RateLimited(f"a task has at most {MOST} push notification configurations: delete one first")
        if run["status"] in _STOPPED:
            await connection.execute(
                _SQL["tell_pushed"], run_id, run["epoch"], run["end_seq"], run["status"], config_id
            )
    return shown(run_id, config_id, said.url)


async def of_run(door: Door, run_id: str, config_id: str | None = None) -> list[TaskPushNotificationConfig]:
    """The configurations of a run, or the one of an id."""
    rows = await door.pool.fetch(_SQL["pushes_of"], run_id, config_id)
    return [shown(run_id, row["config_id"], row["url"]) for row in rows]


async def drop(door: Door, run_id: str, config_id: str) -> None:
    """Tell this one no more; what was on its way may still come. Nothing when there is none."""
    await door.pool.execute(_SQL["drop_push"], run_id, config_id)


def shown(run_id: str, config_id: str, url: str) -> TaskPushNotificationConfig:
    """A configuration without its secrets: they are told to nobody again."""
    return TaskPushNotificationConfig(id=config_id, task_id=run_id, url=url)
