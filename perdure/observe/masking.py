"""What keeps secrets out of logs and traces: by the key they stand under, by their form, and by their own value."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from structlog.typing import EventDict, WrappedLogger

MASK: Final = "***"
REFERENCE: Final = "secret://"
DEEPEST: Final = 6
LONGEST: Final = 20_000  # characters of one text that are looked at and shown
WIDEST: Final = 1000  # members of one collection that are shown
SHORTEST_VALUE: Final = 6  # characters of a value that is masked wherever it stands; shorter ones are ordinary words
MOST_VALUES: Final = 500
LARGEST_INT: Final = 2**63  # of JSON as it is written here
_TAIL: Final = 2000

# `max_tokens` and `tokenizer` are no secrets: the word must stand alone between separators.
_WORDS: Final = (
    r"secrets?|passwords?|passwd|pwd|passphrase|token|jwt|cookie|authorization|credentials?"
    r"|(?:api|private|access|signing|encryption|secret)[_\- ]?keys?"
)
_SECRET_KEY: Final = re.compile(rf"(?:^|[_\-. ])(?:{_WORDS})(?:$|[_\-. ])", re.IGNORECASE)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_IN_TEXT: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    (re.compile(r"(\b(?:nats|tls)://)[^\s:/@]+@", re.IGNORECASE), rf"\1{MASK}@"),  # a user alone is a token there
    (re.compile(r"(://[^\s:/@]{0,200}):[^\s/]+@", re.IGNORECASE), rf"\1:{MASK}@"),
    (re.compile(r"\b(Bearer)(\s+|%20)[A-Za-z0-9._~+/=-]{5,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\b(Basic)(\s+|%20)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{12,}"), f"sk-{MASK}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?"), MASK),
    # `password=…`, `"api_key": "…"`, `token: …`, also within JSON that is a text inside JSON
    (
        re.compile(
            rf"""((?:(?<=[_\-.\s"'?&,;{{(\[])|\b)(?:{_WORDS})\\*["']?\s*(?:=>|=|:)\s*)(\\*["'])(?!secret://)"""
            r"""(?:(?!\2).){1,4000}\2""",
            re.IGNORECASE,
        ),
        rf"\1\2{MASK}\2",
    ),
    (
        re.compile(
            rf"""((?:(?<=[_\-.\s"'?&,;{{(\[])|\b)(?:{_WORDS})\\*["']?\s*(?:=>|=|:)\s*)"""
            r"""(?!//|secret://|\*\*\*|(?:None|null|true|false)\b|(?:Bearer|Basic)\b)[^\s"'\\&,;(){}\[\]]+""",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
)

_values: OrderedDict[str, None] = OrderedDict()
_pattern: re.Pattern[str] | None = None


def hide(value: str | None) -> None:
    """Mask `value` wherever it stands from now on: it is a secret that this process has resolved.

    Values under 6 characters are ordinary words, and left alone; of more than 500 the oldest are given up.
    """
    global _pattern  # noqa: PLW0603 -- one process has one set of secrets
    if value is None or len(value) < SHORTEST_VALUE or value in _values:
        return
    _values[value] = None
    while len(_values) > MOST_VALUES:
        _values.popitem(last=False)
    _pattern = re.compile("|".join(re.escape(each) for each in sorted(_values, key=len, reverse=True)))


def hide_in_url(url: str | None) -> None:
    """Hide the password of an address, or of each of several between commas."""
    for each in (url or "").split(","):
        try:
            parts = urlsplit(each.strip())
            password = parts.password
        except ValueError:
            continue
        if password:
            hide(password)
            hide(unquote(password))


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The processor that keeps secrets out: values under a secret's key, and passwords inside texts and addresses."""
    for key in list(event):
        value = _masked(key, event.pop(key), 0)
        event[_shown(key)] = value
    return event


def mask_text(text: str) -> str:
    """`text` without the passwords of addresses, bearer tokens, API keys, and the values that `hide` was told."""
    cut = len(text) > LONGEST
    if cut:
        # A secret that the cut divides would have no form any more: what hangs on the cut goes with it.
        kept = text[:LONGEST]
        tail = max(kept.rfind(" "), kept.rfind("\n"), LONGEST - _TAIL)
        left, text = len(text) - tail, kept[:tail]
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # halves of surrogates, as names of files may have them
    if _pattern is not None:
        text = _pattern.sub(MASK, text)
    for pattern, instead in _IN_TEXT:
        text = pattern.sub(instead, text)
    return f"{text} … [{left} more characters]" if cut else text


def is_secret_key(key: str) -> bool:
    """Whether what stands under `key` is a secret: `apiKey`, `db_password`, `X-Auth-Token`."""
    return _SECRET_KEY.search(_CAMEL.sub("_", key[:200])) is not None


def _masked(key: str, value: Any, depth: int) -> Any:
    if is_secret_key(key):
        reference = isinstance(value, str) and value.startswith(REFERENCE)
        return value if reference or value is None or isinstance(value, bool) else MASK
    if isinstance(value, str):
        return mask_text(value)
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return value if -LARGEST_INT <= value < LARGEST_INT else _text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return mask_text(bytes(value[: 4 * LONGEST]).decode("utf-8", "replace"))
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        if depth >= DEEPEST:
            return f"[{type(value).__name__} too deep to show]"  # its text could hold what its keys would have said
        return _members(value, depth + 1)
    return mask_text(_text(value))


def _shown(key: str) -> str:
    """A key as it is written: a word has no form of a secret, and may be one all the same."""
    if not key.isidentifier():
        return mask_text(key)
    return key if _pattern is None else _pattern.sub(MASK, key)


def _members(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return {_shown(str(name)): _masked(str(name), value[name], depth) for name in list(value)[:WIDEST]}
    members = list(value)[:WIDEST]
    if len(members) == 2 and isinstance(value, tuple | list) and isinstance(members[0], str | bytes):
        name = members[0].decode("latin-1") if isinstance(members[0], bytes) else members[0]
        if is_secret_key(name):  # a header, as lists of headers have it
            return [name, MASK]
    return [_masked("", each, depth) for each in members]


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 -- an object of anybody's: its fault must not cost the line
        return f"[{type(value).__name__} that cannot be shown: {type(error).__name__}]"
