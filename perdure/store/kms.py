"""Data keys that a key service wraps: `PERDURE_ENCRYPTION_KMS` names the hook to one (AWS KMS, Vault's transit, …).

A value's way does not wait for the service: data keys are wrapped and unwrapped before (`prepare`), and remembered.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from perdure.errors import SetupError
from perdure.store.sealing import KEY_BYTES, REMEMBERED, SEALS, DataKey, EnvelopeCodec, tenant_in
from perdure.store.vault import Unreadable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from perdure.settings import Settings

AT_ONCE: Final = 16  # calls of the service under way
LONGER: Final = 15 * SEALS  # values that a data key may seal beyond its time while the service is away: 2**32 in all
REFUSED_FOR: Final = 10.0  # seconds for which a refusal is believed, so that many values do not ask again each
AGAIN: Final = 10.0  # seconds until a data key that is due for a new one is tried again, while the service is away
_Key = tuple[str, str, str]  # id of the key-encryption key, wrapped data key, tenant

log = structlog.get_logger(__name__)


class KeyRefused(Exception):
    """The service will not: there is no such key, it is disabled, or this process may not use it."""


class KeyServiceAway(ConnectionError):
    """The service does not answer. As with a database that is away, what needs it waits and is tried again."""


class KeyServiceRefuses(KeyServiceAway):
    """The service answers, and will not wrap a data key: a fault that passes when somebody mends it, and not by itself.

    It is waited for like one that is away, because there is no other way to keep what is to be sealed: a run's error
    would have to be sealed, too.
    """


class KeyService(Protocol):
    """What the hook gives. Each call has `PERDURE_ENCRYPTION_KMS_TIMEOUT`; it may run many times at once."""

    async def wrap(self, key: bytes, tenant: str) -> tuple[str, bytes]:
        """`key` (32 bytes) wrapped for `tenant` ("" is the platform): the id of the key that did it, and the result.

        Raises `KeyRefused` for a no; anything else counts as a service that is away.
        """

    async def unwrap(self, key_id: str, wrapped: bytes, tenant: str) -> bytes:
        """What was wrapped, by the key of that id and for that tenant alone. Raises as `wrap`."""


class KmsCodec(EnvelopeCodec):
    """The envelope codec whose data keys a service wraps. `keys` of the environment open what they once sealed."""

    def __init__(self, service: KeyService, keys: Mapping[str, bytes], timeout: float) -> None:
        super().__init__(keys)
        self._service = service
        self._timeout = timeout
        self._room = asyncio.Semaphore(AT_ONCE)
        self._under_way: dict[_Key, asyncio.Task[None]] = {}
        self._refused: dict[_Key, tuple[str, float]] = {}

    async def prepare(self, contexts: Iterable[bytes], sealed: Iterable[Mapping[str, str]]) -> None:
        """Have the data keys at hand to seal for `contexts`, and to open `sealed`.

        Raises `KeyServiceAway`, or `KeyServiceRefuses`. What may not be unwrapped is said where it is opened.
        """
        wanted: dict[_Key, Callable[[], Awaitable[None]]] = {}
        for tenant in {tenant_in(context) for context in contexts}:
            make = lambda tenant=tenant: self._make(tenant)  # noqa: E731
            if not self._may_seal(tenant):
                if self._is_refused(("", "", tenant)):
                    raise _refusal(tenant, self._refused["", "", tenant][0])
                wanted["", "", tenant] = make
            elif self._is_due(tenant):
                self._once(("", "", tenant), make)  # nobody waits: it goes on with the one that it has
        for each in sealed:
            key = (str(each.get("key")), str(each.get("wrapped")), str(each.get("tenant", "")))
            if key[0] not in self._keys and key not in self._data_keys and not self._is_refused(key):
                wanted[key] = lambda key=key: self._unwrap(key)  # type: ignore[misc]
        if wanted:
            tasks = [self._once(key, what) for key, what in wanted.items()]
            done = await asyncio.gather(*(asyncio.shield(task) for task in tasks), return_exceptions=True)
            for error in done:
                if isinstance(error, BaseException):
                    raise error

    def _once(self, key: _Key, what: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """The call for `key` that is under way, or a new one: however many wait for it, it is made once."""
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.get_running_loop().create_task(_run(what), name="key service")
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: _Key, task: asyncio.Task[None]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # looked at: whoever waited has heard it, if anybody still does

    def _is_due(self, tenant: str) -> bool:
        mine = self._mine.get(tenant)
        now = time.monotonic()
        return mine is None or ((mine.left <= 0 or now > mine.until) and now >= mine.again)

    def _may_seal(self, tenant: str) -> bool:
        mine = self._mine.get(tenant)
        return mine is not None and mine.left > -LONGER

    def _is_refused(self, key: _Key) -> bool:
        found = self._refused.get(key)
        return found is not None and time.monotonic() < found[1]

    async def _make(self, tenant: str) -> None:
        key, before = os.urandom(KEY_BYTES), self._mine.get(tenant)
        try:
            name, wrapped = await self._ask(self._service.wrap(key, tenant), "wrap")
            if not isinstance(name, str) or not name or len(name) > 512 or not isinstance(wrapped, bytes):
                raise KeyServiceAway("the hook gave no id with a wrapped key: mend PERDURE_ENCRYPTION_KMS")
        except (KeyRefused, KeyServiceAway) as error:
            if before is not None and self._may_seal(tenant):
                before.again = time.monotonic() + AGAIN
                action = "kms.refused" if isinstance(error, KeyRefused) else "kms.away"
                log.warning("a data key is used longer", action=action, tenant=tenant, error=str(error))
                return
            if isinstance(error, KeyRefused):
                self._refuse(("", "", tenant), error, "a data key was not wrapped: what is to be sealed waits")
                raise _refusal(tenant, str(error)) from error
            raise
        self._refused.pop(("", "", tenant), None)
        self._keep_mine(tenant, key, name, base64.b64encode(wrapped).decode())

    async def _unwrap(self, key: _Key) -> None:
        name, wrapped, tenant = key
        try:
            found = await self._ask(self._service.unwrap(name, base64.b64decode(wrapped), tenant), "unwrap")
            if not isinstance(found, bytes) or len(found) != KEY_BYTES:
                raise KeyRefused("it gave something else than a data key")
        except (KeyRefused, ValueError) as error:
            self._refuse(key, error, "a data key was not unwrapped")
        else:
            self._refused.pop(key, None)
            self._remember(key, found)

    def _refuse(self, key: _Key, error: Exception, what: str) -> None:
        self._refused[key] = (str(error), time.monotonic() + REFUSED_FOR)
        while len(self._refused) > REMEMBERED:
            self._refused.pop(next(iter(self._refused)))
        log.warning(what, action="kms.refused", key=key[0] or None, tenant=key[2], error=str(error))

    async def _ask(self, answer: Awaitable[Any], what: str) -> Any:
        try:
            async with self._room, asyncio.timeout(self._timeout):
                return await answer
        except KeyRefused:
            raise
        except TimeoutError:
            raise KeyServiceAway(f"the key service did not {what} a data key within {self._timeout:g} s") from None
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:300]
            raise KeyServiceAway(f"the key service did not {what} a data key: {said}") from error

    # -- as the envelope codec asks -----------------------------------------------------------------------------------

    def _key_of(self, tenant: str) -> DataKey:
        if not self._may_seal(tenant):  # nobody has prepared, or could for too long
            raise KeyServiceAway(f"there is no data key of {tenant or 'the platform'}, or none that is fresh enough")
        mine = self._mine[tenant]
        self._mine.move_to_end(tenant)
        mine.left -= 1
        return mine

    def _data_key(self, name: str, wrapped: str, tenant: str) -> AESGCM:
        key = (name, wrapped, tenant)
        if name in self._keys or key in self._data_keys:
            return super()._data_key(name, wrapped, tenant)
        if key in self._refused:
            raise Unreadable(f"the key service will not unwrap its data key (key {name!r}): {self._refused[key][0]}")
        raise KeyServiceAway(f"its data key (key {name!r}) is not unwrapped yet")


def _refusal(tenant: str, why: str) -> KeyServiceRefuses:
    whose = f"tenant {tenant!r}" if tenant else "the platform"
    return KeyServiceRefuses(
        f"the key service refuses to wrap a data key of {whose}: {why}. Until it does, nothing of it can be stored: "
        "enable the key, let this process use it, or have the hook take another one"
    )


async def _run(what: Callable[[], Awaitable[None]]) -> None:
    await what()


def kms_codec(settings: Settings, keys: Mapping[str, bytes]) -> KmsCodec:
    """The codec of the hook that the settings name, which is called with them. Raises `SetupError`."""
    said = f"PERDURE_ENCRYPTION_KMS={settings.encryption_kms}"
    module, _, name = settings.encryption_kms.partition(":")
    try:
        made: Any = getattr(import_module(module), name)(settings)
    except Exception as error:
        raise SetupError(
            f"{said} cannot be used: {type(error).__name__}: {error}. It is module:function; the function takes the "
            "settings and returns an object with async wrap and unwrap (perdure.store.kms.KeyService)"
        ) from error
    if not all(asyncio.iscoroutinefunction(getattr(made, each, None)) for each in ("wrap", "unwrap")):
        raise SetupError(f"{said} gave a {type(made).__name__} without async wrap and unwrap")
    return KmsCodec(made, keys, settings.encryption_kms_timeout)
