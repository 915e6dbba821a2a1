"""Where clients reach this process, which may be another address than the one that it listens on."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from perdure.edge.gate import is_loopback
from perdure.errors import SetupError
from perdure.settings import Settings

LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


def public_url(settings: Settings) -> str | None:
    """`PERDURE_GATEWAY_PUBLIC_URL` without a slash at its end. Raises `SetupError` for what is no address."""
    said = settings.gateway_public_url
    if not said:
        return None
    parts = urlsplit(said)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise SetupError(f"PERDURE_GATEWAY_PUBLIC_URL: {said!r} is no http(s) address like https://agents.example.com")
    return said.rstrip("/")


def base_url(settings: Settings, request: Request) -> str:
    """The address for whoever asked: the configured one, else the one that was asked."""
    return public_url(settings) or str(request.base_url).rstrip("/")


def hosts(settings: Settings) -> tuple[str, ...] | None:
    """The values of `Host` that are answered where that is checked; None: any.

    On loopback they are this machine's names. Elsewhere any is, unless one is configured: a key is needed there, which
    a page that reaches us under a false name does not have.
    """
    public = public_url(settings)
    named = (urlsplit(public).netloc,) if public else ()
    own = tuple(f"{name}:*" for name in LOOPBACK) + LOOPBACK
    if is_loopback(settings.gateway_host):
        return own + named
    return own + named if named else None
