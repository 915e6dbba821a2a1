"""`GET /docs`: the OpenAPI document for people, as one page that needs nothing from anywhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

import orjson

HEADERS: Final = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_CODE: Final = re.compile(r"`([^`]+)`")
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
code, pre { font: 13px/1.4 ui-monospace, monospace; background: #f4f4f2 } pre { padding: .6rem; overflow: auto }
details { border-top: 1px solid #ddd; padding: .4rem 0 } summary { cursor: pointer }
b { display: inline-block; width: 4.5rem }
table { border-collapse: collapse } td, th { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0 }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd } code, pre { background: #2a2a2a } }
"""


def page(document: Mapping[str, Any]) -> str:
    """The page."""
    return "\n".join(_page(document))


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    about = document["info"]
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(about["title"])}</title>'
    yield f"<style>{_STYLE}</style><h1>{escape(about['title'])} {escape(about['version'])}</h1>"
    yield f'<p>{_said(about.get("description"))}</p><p>For programs: <a href="openapi.json">openapi.json</a></p>'
    found: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, each in operations.items():
            found.setdefault(each.get("tags", ["other"])[0], []).append(_operation(method, path, each))
    for tag, shown in found.items():
        yield f"<h2>{escape(tag)}</h2>"
        yield from shown
    yield "<h2>Schemas</h2>"
    for name, schema in document["components"]["schemas"].items():
        yield f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>{_json(schema)}</details>'


def _operation(method: str, path: str, said: Mapping[str, Any]) -> str:
    parameters = [
        (
            f"<code>{escape(each['name'])}</code>",
            each["in"] + (", needed" if each.get("required") else ""),
            _said(each.get("description")),
            _schema(each.get("schema", {})),
        )
        for each in said.get("parameters", ())
    ]
    answers = [
        (escape(status), _said(each.get("description")), _contents(each)) for status, each in said["responses"].items()
    ]
    body = f"<p>Body: {_contents(said['requestBody'])}</p>" if "requestBody" in said else ""
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> {_said(said.get('summary'))}</summary>"
        f"<p>{_said(said.get('description'))}</p>{_table(parameters)}{body}<h4>Answers</h4>{_table(answers)}</details>"
    )


def _contents(said: Mapping[str, Any]) -> str:
    """What a body may be, by its media type."""
    kinds = said.get("content", {}).items()
    return ", ".join(f"<code>{escape(kind)}</code> {_schema(each.get('schema', {}))}" for kind, each in kinds)


def _schema(schema: Mapping[str, Any]) -> str:
    """A schema: the name of one that stands below, or itself."""
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        return f'<a href="#{escape(name)}">{escape(name)}</a>'
    more = {key: value for key, value in schema.items() if key not in ("title", "description")}
    return _json(more) if more.keys() - {"type"} else escape(str(more.get("type", "")))


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    return f"<table>{''.join('<tr><td>' + '</td><td>'.join(row) + '</td></tr>' for row in rows)}</table>"


def _json(value: Any) -> str:
    return f"<pre>{escape(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())}</pre>"


def _said(text: str | None) -> str:
    """Text as HTML; what stands in backticks is code."""
    return _CODE.sub(r"<code>\1</code>", escape(text or ""))
