"""The fixed rules by which the offline model answers. It is no language model, and every answer says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from perdure.llm.offline_arguments import fill

NOTICE: Final = "[offline model: fixed rules, no language model]"
_ROLE: Final = re.compile(r"^\s*(?:your |the )?role(?: is)?\s*[:=]\s*(?P<role>.+)$", re.IGNORECASE | re.MULTILINE)
_NOTE: Final = re.compile(r"^\s*(?:background work|memory)\s*:\s*.+$", re.IGNORECASE | re.MULTILINE)
_MAX_QUOTE: Final = 2_000


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def role_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The role that the system prompt gives: its `Your role:` line, else its first line."""
    system = "\n".join(text_of(message) for message in messages if message.get("role") in {"system", "developer"})
    if found := _ROLE.search(system):
        return found["role"].strip().rstrip(".")
    return next((line.strip().rstrip(".") for line in system.splitlines() if line.strip()), "nobody in particular")


def _notes(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    system = "\n".join(text_of(message) for message in messages if message.get("role") in {"system", "developer"})
    return [found.group(0).strip() for found in _NOTE.finditer(system)]


def _results(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """`tool: result` for each result since the last thing the model or the user said."""
    names = {
        call.get("id"): call.get("function", {}).get("name", "tool")
        for message in messages
        for call in message.get("tool_calls") or []
        if isinstance(call, Mapping)
    }
    found: list[str] = []
    for message in reversed(messages):
        if message.get("role") == "tool":
            found.append(f"{names.get(message.get('tool_call_id'), 'tool')} says {_plain(text_of(message))}")
        elif not message.get("tool_calls"):
            break
    return found[::-1]


def _plain(result: str) -> str:
    try:
        value = orjson.loads(result)
    except orjson.JSONDecodeError:
        value = result
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= _MAX_QUOTE else text[:_MAX_QUOTE] + "…"


def _named(prompt: str, tools: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int, int]]:
    """The tools that `prompt` names, with where their names stand, in the order of the prompt."""
    found: dict[int, tuple[Mapping[str, Any], int, int]] = {}
    for tool in tools:
        function = tool.get("function") or {}
        words = re.split(r"[_\-\s]+", str(function.get("name", "")))
        pattern = r"(?<![A-Za-z0-9])" + r"[_\-\s]+".join(re.escape(word) for word in words) + r"(?![A-Za-z0-9])"
        for hit in re.finditer(pattern, prompt, re.IGNORECASE):
            longer = found.get(hit.start())
            if longer is None or hit.end() > longer[2]:
                found[hit.start()] = (function, hit.start(), hit.end())
    return [found[start] for start in sorted(found)]


def choose_calls(prompt: str, tools: Sequence[Mapping[str, Any]], choice: Any) -> list[tuple[str, str]]:
    """`(tool, arguments JSON)` for each tool to call now; a tool named twice is called twice."""
    if not tools or choice == "none":
        return []
    if isinstance(choice, Mapping):
        wanted = (choice.get("function") or {}).get("name")
        tools = [tool for tool in tools if (tool.get("function") or {}).get("name") == wanted]
    named = _named(prompt, tools)
    if not named and (choice == "required" or isinstance(choice, Mapping)) and tools:
        named = [(tools[0].get("function") or {}, 0, 0)]
    calls = []
    for at, (function, _, end) in enumerate(named):
        until = named[at + 1][1] if at + 1 < len(named) else len(prompt)
        arguments = fill(function.get("parameters") or {}, prompt[end:until])
        calls.append((str(function["name"]), orjson.dumps(arguments).decode()))
    return calls


def respond(payload: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """`(text, calls)` for one chat-completions request: calls when the newest user message names a tool."""
    messages: Sequence[Mapping[str, Any]] = payload["messages"]
    newest = max((at for at, one in enumerate(messages) if one.get("role") == "user"), default=-1)
    prompt = text_of(messages[newest]) if newest >= 0 else ""
    after = messages[newest + 1 :]
    if not after:
        calls = choose_calls(prompt, payload.get("tools") or [], payload.get("tool_choice", "auto"))
        if calls:
            return "", calls
    if schema := ((payload.get("response_format") or {}).get("json_schema") or {}).get("schema"):
        return orjson.dumps(fill(schema, prompt)).decode(), []
    role = role_of(messages)
    if after and (results := _results(messages)):
        return f"{NOTICE} As {role}: {'; '.join(results)}.", []
    heard = prompt if len(prompt) <= _MAX_QUOTE else prompt[:_MAX_QUOTE] + "…"
    said = [f'{NOTICE} As {role}, I heard: "{heard}".']
    if before := _results(messages[:newest]):
        said.append(f"Since we last spoke: {'; '.join(before)}.")
    said.extend(f"{note.rstrip('.')}." for note in _notes(messages))
    return " ".join(said), []
