"""Signatures of webhooks, in the form of Standard Webhooks (https://www.standardwebhooks.com).

What is signed is `id.timestamp.body`, with HMAC-SHA256. A secret that begins with `whsec_` is base64 behind that; any
other one is used as it is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Final

TOLERANCE: Final = 300.0  # seconds that a timestamp may be off
PREFIX: Final = "whsec_"
SHORTEST: Final = 16  # bytes of a secret


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of the header `webhook-signature`. Raises `ValueError` for a secret that cannot be one."""
    return f"v1,{base64.b64encode(_mac(secret, message_id, timestamp, body)).decode()}"


def verify(secret: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None) -> None:
    """For receivers: raise `ValueError` unless `body` is signed with `secret`, and not longer than 5 minutes ago.

    `headers` may be of any case. The `webhook-id` names the message: one that was seen before is a repeat.
    """
    told = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp = told["webhook-id"], int(told["webhook-timestamp"])
        signatures = told["webhook-signature"].split()
    except (KeyError, ValueError):
        raise ValueError("webhook-id, webhook-timestamp and webhook-signature are needed") from None
    if abs((time.time() if now is None else now) - timestamp) > TOLERANCE:
        raise ValueError("the webhook's timestamp is too old or in the future")
    wanted = sign(secret, message_id, timestamp, body)
    if not any(hmac.compare_digest(wanted.encode(), each.encode()) for each in signatures):
        raise ValueError("the webhook's signature does not fit")


def _mac(secret: str, message_id: str, timestamp: int, body: bytes) -> bytes:
    return hmac.digest(_key(secret), f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)


def _key(secret: str) -> bytes:
    if secret.startswith(PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            raise ValueError("a secret that begins with whsec_ goes on in base64") from None
    else:
        key = secret.encode()
    if len(key) < SHORTEST:
        raise ValueError(f"a webhook's secret has at least {SHORTEST} bytes")
    return key
