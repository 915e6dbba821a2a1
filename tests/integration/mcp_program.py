"""An MCP server for tests: over stdio, or over HTTP on the port that is given."""

from __future__ import annotations

import sys

from mcp.server import MCPServer

server = MCPServer("files")


@server.tool()
def read_file(path: str) -> str:
    """Read a file."""
    return f"content of {path}"


@server.tool()
def delete_file(path: str) -> str:
    """Delete a file."""
    return f"{path} is gone"


@server.tool()
def broken() -> str:
    """Break."""
    raise ValueError("the disk is on fire")


@server.tool()
def die() -> str:
    """Die."""
    import os

    os._exit(3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
