"""Settings of this environment: that they fit together, and that what they refer to is there."""

from __future__ import annotations

from urllib.parse import urlsplit

from perdure.config.secrets import resolve_secret
from perdure.doctor.findings import Finding, Notes, split_advice
from perdure.edge.tokens import Tokens
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.postgres import database_of
from perdure.store.sealing import vault_for

LOOPBACK = ("127.0.0.1", "::1", "localhost")


async def look(settings: Settings) -> list[Finding]:
    """What contradicts itself, secrets, keys."""
    notes = Notes("settings")
    _contradictions(notes, settings)
    if not notes.findings:
        notes.ok("settings", "they fit together")
    await _secret(notes, settings)
    await _keys(notes, settings)
    return notes.findings


def _contradictions(notes: Notes, settings: Settings) -> None:
    if settings.inline_payload > settings.max_payload:
        notes.error(
            "payloads",
            f"PERDURE_INLINE_PAYLOAD ({settings.inline_payload}) is larger than PERDURE_MAX_PAYLOAD "
            f"({settings.max_payload})",
            "Set PERDURE_INLINE_PAYLOAD to at most PERDURE_MAX_PAYLOAD; its default is 262144",
        )
    try:
        database_of(settings)
    except SetupError as error:
        notes.error("namespace", *split_advice(str(error)))
    try:
        Tokens.configured(settings)
    except SetupError as error:
        notes.error("tokens", str(error).partition(": set ")[0], "Set all three, or none of them")
    if settings.codec and settings.encryption_keys:
        notes.warn(
            "encryption",
            "PERDURE_CODEC is set, so that PERDURE_ENCRYPTION_KEYS is not looked at",
            "Unset one of PERDURE_CODEC and PERDURE_ENCRYPTION_KEYS",
        )
    if settings.lease_seconds * 2 > settings.drain_timeout:
        notes.warn(
            "lease",
            f"PERDURE_LEASE_SECONDS ({settings.lease_seconds:g}) is more than half of PERDURE_DRAIN_TIMEOUT "
            f"({settings.drain_timeout:g}): a hung process is found out later than a drain takes",
            "Lower PERDURE_LEASE_SECONDS (default 5), or raise PERDURE_DRAIN_TIMEOUT and the time that a container "
            "is given to stop",
        )
    public = settings.gateway_public_url
    if public and urlsplit(public).scheme not in ("http", "https"):
        notes.error(
            "gateway", f"PERDURE_GATEWAY_PUBLIC_URL is {public!r}", "Write it as https://host, as clients reach it"
        )
    if settings.callback_private and settings.gateway_host not in LOOPBACK:
        notes.warn(
            "callbacks",
            "PERDURE_CALLBACK_PRIVATE lets callers of an open gateway have callbacks sent into this network",
            "Unset PERDURE_CALLBACK_PRIVATE, or let the gateway listen on 127.0.0.1 (PERDURE_GATEWAY_HOST)",
        )


async def _secret(notes: Notes, settings: Settings) -> None:
    if not settings.callback_secret:
        return
    try:
        await resolve_secret(settings.callback_secret)
    except (SetupError, ValueError) as error:
        notes.error(
            "secrets",
            f"PERDURE_CALLBACK_SECRET: {error}",
            "Set that variable or make that file where the scheduler runs, or change PERDURE_CALLBACK_SECRET",
        )
    else:
        notes.ok("secrets", "PERDURE_CALLBACK_SECRET can be read")


async def _keys(notes: Notes, settings: Settings) -> None:
    try:
        vault = await vault_for(settings)
    except SetupError as error:
        notes.error("encryption", *split_advice(str(error)))
    else:
        notes.ok("encryption", "values are sealed" if vault.seals else "values are stored as they are")
