"""Secrets are references: what stands in configuration is where a secret is, and the agent looks there."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from perdure.errors import SetupError
from perdure.observe.masking import hide

REFERENCE: Final = re.compile(r"secret://(env|file)/[^\x00-\x1f\x7f]+")
MASK: Final = "********"
LARGEST: Final = 64 * 1024  # bytes of a secret's file


def is_reference(value: str) -> bool:
    """Whether `value` is `secret://env/NAME` or `secret://file/PATH`."""
    return REFERENCE.fullmatch(value) is not None


def _check(value: str) -> str:
    if value and not is_reference(value):
        # Not a word of the value: this text goes into logs and events.
        raise ValueError("must be a reference: secret://env/NAME or secret://file/PATH")
    return value


# The type of a setting that holds a reference to a secret; `secret` in its schema makes the platform refuse plain text.
SecretReference = Annotated[str, AfterValidator(_check), Field(json_schema_extra={"secret": True})]


async def resolve_secret(reference: str) -> str:
    """The secret itself: the environment variable NAME, or the content of the file PATH without its last newline.

    `secret://file/run/secrets/key` is the absolute path `/run/secrets/key`. Raises `ValueError` for what is no
    reference and `SetupError`, naming the reference, when there is nothing behind it.
    """
    _check(reference)
    if not reference:
        raise ValueError("an empty text is no reference to a secret")
    kind, _, where = reference.removeprefix("secret://").partition("/")
    if kind == "env":
        value = os.environ.get(where)
        if not value:
            raise SetupError(f"{reference}: the environment variable {where} is not set in this process")
    else:
        value = await asyncio.to_thread(_read, reference, Path("/") / where)
    hide(value)  # from logs and traces, wherever it may turn up
    return value


def _read(reference: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        secret = content.decode().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{reference} cannot be read ({type(error).__name__}): is the file there?") from None
    if not secret or len(content) > LARGEST:
        raise SetupError(f"{reference} is empty or larger than {LARGEST} bytes")
    return secret
