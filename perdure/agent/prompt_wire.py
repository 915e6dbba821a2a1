"""What the Synadia Agent Protocol for NATS 0.3 says on the wire: envelopes, chunks, errors, heartbeats."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from perdure.errors import InvalidRequest

PROTOCOL: Final = "0.3"
SERVICE: Final = "agents"
HEARTBEAT_SECONDS: Final = 10
LONGEST_ATTACHMENT: Final = 100_000


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: its text, with what came along as text beneath it."""

    text: str
    attachments: list[str] = field(default_factory=list)


def read_envelope(data: bytes) -> Prompt:
    """Read a request: a JSON object with `prompt`, or plain text. Raises `InvalidRequest` naming the fault."""
    if not data.strip():
        raise InvalidRequest("the request is empty: send a text, or a JSON object with `prompt`")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the request is neither JSON nor UTF-8 text") from None
    if not text.lstrip().startswith("{"):
        return Prompt(text)
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the request begins like JSON, but is none: {error}") from None
    prompt = said.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequest("field 'prompt': it must be a text that is not empty")
    given = said.get("attachments") or []
    if not isinstance(given, list):
        raise InvalidRequest("field 'attachments': it must be a list")
    return Prompt(prompt, [_attachment(at, one) for at, one in enumerate(given)])


def _attachment(at: int, given: Any) -> str:
    """An attachment as the model reads it: text is shown, anything else is named."""
    name = given.get("filename") if isinstance(given, Mapping) else None
    content = given.get("content") if isinstance(given, Mapping) else None
    if not isinstance(name, str) or not isinstance(content, str):
        raise InvalidRequest(f"field 'attachments[{at}]': it must have a `filename` and a `content` in base64")
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"field 'attachments[{at}].content': it is not base64") from None
    shown = "".join(char for char in name.replace("\\", "/").rpartition("/")[2] if char.isprintable())[:200]
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"[attachment {shown}: {len(data)} bytes that are no text]"
    if len(text) > LONGEST_ATTACHMENT:
        text = f"{text[:LONGEST_ATTACHMENT]}\n[cut after {LONGEST_ATTACHMENT} characters]"
    return f"Attachment {shown}:\n{text}"


def response(text: str) -> bytes:
    """A chunk with a piece of the answer."""
    return orjson.dumps({"type": "response", "data": text})


def status(word: str) -> bytes:
    """A chunk that says how the work goes; clients pass over words that they do not know."""
    return orjson.dumps({"type": "status", "data": word})


def query(identity: str, reply_subject: str, prompt: str) -> bytes:
    """A chunk that asks the user something; the answer goes to `reply_subject`."""
    return orjson.dumps({"type": "query", "data": {"id": identity, "reply_subject": reply_subject, "prompt": prompt}})


def error_headers(code: int, message: str) -> dict[str, str]:
    """The headers of an error frame: one short line of ASCII."""
    text = " ".join(message.split())[:300].encode("ascii", "replace").decode()
    return {"Nats-Service-Error-Code": str(code), "Nats-Service-Error": text or "error"}


def heartbeat(agent: str, owner: str, session: str, instance_id: str) -> bytes:
    """The payload of a heartbeat, and of the status endpoint."""
    return orjson.dumps(
        {
            "agent": agent,
            "owner": owner,
            "session": session,
            "instance_id": instance_id,
            "ts": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "interval_s": HEARTBEAT_SECONDS,
            "protocol_version": PROTOCOL,
        }
    )


def approves(answer: str) -> bool:
    """Whether a person's words approve; everything that is not plainly a yes does not."""
    word = re.split(r"[\s,.!]+", answer.strip().lower(), maxsplit=1)[0]
    return word in {"yes", "y", "ok", "okay", "approve", "approved", "allow", "true"}
