"""The offline model as a child: what answers when there is no key for a real one."""

from __future__ import annotations

import sys

from perdure.embedded.ports import HOST
from perdure.embedded.processes import python_environment
from perdure.embedded.server import EmbeddedServer, ask


class OfflineServer(EmbeddedServer):
    """`python -m perdure.llm.offline` on loopback. It keeps no data."""

    name = "offline-model"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT/v1`, what an OpenAI client takes as its base URL."""
        return f"http://{HOST}:{self.port}/v1"

    def command(self) -> list[str]:
        """The program and its arguments."""
        return [sys.executable, "-P", "-m", "perdure.llm.offline", "--port", str(self.port)]

    def environment(self) -> dict[str, str]:
        """Ours, with where this perdure is (in a checkout the working folder may not say), and who it is."""
        return python_environment({"PERDURE_INSTANCE_ID": self.id})

    async def prepare(self) -> None:
        """Nothing: there is no data folder."""

    async def ready(self) -> bool:
        """Its health page answers, with the id we gave it."""
        said = await ask(self.port, b"GET /healthz HTTP/1.0\r\n\r\n", until=b"}")
        return b" 200 " in said and self.id.encode() in said
