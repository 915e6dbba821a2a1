"""An MCP program for tests that lies: endless pages of tools, nonsense results; with `odd`, impossible schemas."""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

page = itertools.count()


def tool(name: str, schema: Any = None, about: str = "x") -> dict[str, Any]:
    return {"name": name, "description": about, "inputSchema": schema or {"type": "object", "properties": {}}}


def listed() -> dict[str, Any]:
    if sys.argv[1:] == ["odd"]:
        return {"tools": [tool("odd", {"type": "object", "properties": 7})]}
    if next(page) == 0:
        tools = [
            tool("no result"), tool("no.result"), tool("broken answer"),
            tool("silent"), tool("long", about="y" * 100_000), tool("huge"),
        ]  # fmt: skip
    else:
        tools = [tool(f"more {next(page)}") for _ in range(50)]
    return {"tools": tools, "nextCursor": "again"}


def answer(method: str, params: dict[str, Any]) -> Any:
    if method == "initialize":
        about = {"name": "liar", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        return listed()
    if method == "tools/call":
        if params["name"] == "silent":
            time.sleep(3600)
        if params["name"] == "huge":
            return {"content": [{"type": "text", "text": "z" * 1_000_000}]}
        return {"content": 7} if params["name"] == "no result" else {"content": [{"type": "wat"}], "isError": "perhaps"}
    return {}


for line in sys.stdin:
    said = json.loads(line)
    if "id" in said:
        sys.stdout.write("this is no JSON\n")
        reply = {"jsonrpc": "2.0", "id": said["id"], "result": answer(said["method"], said.get("params") or {})}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
