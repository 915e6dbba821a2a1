"""Encryption of what is stored: AES-256-GCM with data keys of each process, wrapped by keys from the environment.

`perdure.store.kms` has the same with a key service.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from perdure.errors import SetupError
from perdure.store.vault import Codec, Unreadable, Vault
from perdure.subjects import PLATFORM, tenant_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from perdure.settings import Settings

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
SEALS: Final = 2**28  # values under one data key; random nonces are safe for 2**32
LIFE: Final = 3600.0  # seconds that one data key seals
REMEMBERED: Final = 4096  # data keys of others, unwrapped
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HOW: Final = (
    "PERDURE_ENCRYPTION_KEYS is not usable: {}. It is id:key pairs between commas, each key 32 bytes in base64 "
    "(`openssl rand -base64 32`); the first one seals, all of them open"
)


def read_keys(text: str) -> dict[str, bytes]:
    """The keys of `PERDURE_ENCRYPTION_KEYS` by id, in order. Raises `SetupError`, which never quotes a key."""
    keys: dict[str, bytes] = {}
    for number, pair in enumerate(text.split(","), 1):
        name, colon, encoded = pair.strip().partition(":")
        if not colon or not _KEY_ID.fullmatch(name):
            raise SetupError(_HOW.format(f"pair {number} does not begin with an id and a colon"))
        try:
            key = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise SetupError(_HOW.format(f"key {name!r} is not base64")) from None
        if len(key) != KEY_BYTES:
            raise SetupError(_HOW.format(f"key {name!r} has {len(key)} bytes, not {KEY_BYTES}"))
        if name in keys:
            raise SetupError(_HOW.format(f"key {name!r} is there twice"))
        keys[name] = key
    return keys


@dataclass(slots=True)
class DataKey:
    """One that seals: who wrapped it, and for how long and how many values it is used."""

    cipher: AESGCM
    name: str
    wrapped: str
    until: float
    left: int
    again: float = 0.0  # not renewed before: the key service was away


class EnvelopeCodec:
    """Seals under data keys of its own, one a tenant, which travel with each value, wrapped by the first of `keys`."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        # loaded here: who encrypts nothing does not load it
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

        self._cipher = AESGCM
        self._keys = {name: AESGCM(key) for name, key in keys.items()}
        self._first = next(iter(keys), "")
        self._mine: OrderedDict[str, DataKey] = OrderedDict()  # by tenant, whoever was last at the end
        self._data_keys: OrderedDict[tuple[str, str, str], AESGCM] = OrderedDict()

    def _key_of(self, tenant: str) -> DataKey:
        mine = self._mine.get(tenant)
        if mine is None or mine.left <= 0 or time.monotonic() > mine.until:
            key, nonce = os.urandom(KEY_BYTES), os.urandom(NONCE_BYTES)
            wrapped = nonce + self._keys[self._first].encrypt(nonce, key, _wrapping(self._first, tenant))
            mine = self._keep_mine(tenant, key, self._first, base64.b64encode(wrapped).decode())
        self._mine.move_to_end(tenant)
        mine.left -= 1
        return mine

    def _keep_mine(self, tenant: str, key: bytes, name: str, wrapped: str) -> DataKey:
        """Seal for `tenant` under `key` from now on."""
        mine = self._mine[tenant] = DataKey(self._cipher(key), name, wrapped, time.monotonic() + LIFE, SEALS)
        self._mine.move_to_end(tenant)
        self._remember((name, wrapped, tenant), key)
        while len(self._mine) > REMEMBERED:
            self._mine.popitem(last=False)
        return mine

    def _remember(self, which: tuple[str, str, str], key: bytes) -> AESGCM:
        found = self._data_keys[which] = self._cipher(key)
        while len(self._data_keys) > REMEMBERED:
            self._data_keys.popitem(last=False)
        return found

    def seal(self, data: bytes, context: bytes) -> dict[str, str]:
        """See `Codec`."""
        tenant = tenant_in(context)
        mine = self._key_of(tenant)
        nonce = os.urandom(NONCE_BYTES)
        sealed = {
            "key": mine.name,
            "wrapped": mine.wrapped,
            "nonce": base64.b64encode(nonce).decode(),
            "text": base64.b64encode(mine.cipher.encrypt(nonce, data, context)).decode(),
        }
        return {**sealed, "tenant": tenant} if tenant else sealed

    def open(self, sealed: Mapping[str, str], context: bytes) -> bytes:
        """See `Codec`."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 -- as above

        try:
            key = self._data_key(sealed["key"], sealed["wrapped"], sealed.get("tenant", ""))
            return key.decrypt(base64.b64decode(sealed["nonce"]), base64.b64decode(sealed["text"]), context)
        except InvalidTag:
            raise Unreadable("it was altered, or moved here from another place") from None
        except (KeyError, ValueError, TypeError) as error:
            raise Unreadable(f"its envelope is broken ({type(error).__name__})") from None

    def _data_key(self, name: str, wrapped: str, tenant: str) -> AESGCM:
        found = self._data_keys.get((name, wrapped, tenant))
        if found is None:
            if name not in self._keys:
                raise Unreadable(
                    f"it is sealed with key {name!r}, and this process has only {', '.join(self._keys)}: add the key "
                    "to PERDURE_ENCRYPTION_KEYS"
                )
            blob = base64.b64decode(wrapped)
            key = self._keys[name].decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], _wrapping(name, tenant))
            found = self._remember((name, wrapped, tenant), key)
        else:
            self._data_keys.move_to_end((name, wrapped, tenant))
        return found


def _wrapping(name: str, tenant: str) -> bytes:
    return b"perdure data key\x1f" + name.encode() + (b"\x1f" + tenant.encode() if tenant else b"")


def tenant_in(context: bytes) -> str:
    """Whose a place is: ids of a tenant's runs and conversations begin with its name; empty for the platform's own."""
    if b"\x1f" not in context:
        return ""
    named = context.split(b"\x1f", 2)[1].decode()
    named = named.partition("/")[2] or named  # a conversation stands under its agent's name
    tenant = tenant_of(named.removeprefix("session:"))
    return "" if tenant == PLATFORM else tenant


async def vault_for(settings: Settings) -> Vault:
    """The vault of a process. Raises `SetupError` for a codec or keys that cannot be used."""
    codec = None
    if settings.codec or settings.encryption_keys or settings.encryption_kms:
        codec = await asyncio.to_thread(codec_of, settings)  # a module is read from disk
    return Vault(codec, settings.inline_payload, elsewhere=settings.payload_store == "nats")


def codec_of(settings: Settings) -> Codec:
    """What `PERDURE_CODEC` names, called with the settings; without it the envelope codec of the keys."""
    if not settings.codec:
        keys = read_keys(settings.encryption_keys) if settings.encryption_keys else {}
        if not settings.encryption_kms:
            return EnvelopeCodec(keys)
        # imported here: it is built upon this module
        from perdure.store.kms import kms_codec  # noqa: PLC0415

        return kms_codec(settings, keys)
    if settings.encryption_kms:
        raise SetupError("PERDURE_CODEC and PERDURE_ENCRYPTION_KMS are set: a codec of one's own asks its own service")
    module, _, name = settings.codec.partition(":")
    try:
        made: Any = getattr(import_module(module), name)(settings)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SetupError(
            f"PERDURE_CODEC={settings.codec} cannot be used: {error}. It is module:function; the function takes the "
            "settings and returns an object with seal and open (perdure.store.vault.Codec)"
        ) from error
    if not (callable(getattr(made, "seal", None)) and callable(getattr(made, "open", None))):
        raise SetupError(f"PERDURE_CODEC={settings.codec} gave a {type(made).__name__} without seal and open")
    return made  # type: ignore[no-any-return]  # looked at
