"""A Prometheus of our own (Debian's package), that looks at whom it is told to and says which alerts fire."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from perdure.embedded.child import Child
from perdure.embedded.ports import free_port

CONFIG = """\
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [rules.yml]
scrape_configs:
  - job_name: perdure
    file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]
"""


@dataclass
class Prometheus:
    """One that runs."""

    folder: Path
    url: str
    http: aiohttp.ClientSession

    def look_at(self, targets: Mapping[str, str]) -> None:
        """From now on at these: addresses, and which part of the platform each is."""
        said = [{"targets": [address], "labels": {"part": part}} for address, part in targets.items()]
        new = self.folder / "targets.new"
        new.write_text(json.dumps(said))
        new.rename(self.folder / "targets.json")

    async def ask(self, what: str, **parameters: str) -> Any:
        """What its HTTP API answers."""
        async with self.http.get(f"{self.url}/api/v1/{what}", params=parameters) as reply:
            said = await reply.json()
        assert said["status"] == "success", said
        return said["data"]

    async def alerts(self, *states: str) -> list[dict[str, Any]]:
        """The alerts in these states: `pending`, `firing`."""
        return [each for each in (await self.ask("alerts"))["alerts"] if each["state"] in states]

    async def down(self) -> list[str]:
        """The targets that do not answer, or have not been looked at."""
        active = (await self.ask("targets", state="active"))["activeTargets"]
        return [each["labels"]["instance"] for each in active if each["health"] != "up"]


@asynccontextmanager
async def prometheus(folder: Path, rules: str) -> AsyncIterator[Prometheus]:
    """Start one with these rules. Raises `FileNotFoundError` when there is none on this machine."""
    program = shutil.which("prometheus")
    if program is None:
        raise FileNotFoundError("there is no prometheus on this machine: apt-get install prometheus")
    (folder / "prometheus.yml").write_text(CONFIG)
    (folder / "rules.yml").write_text(rules)
    (folder / "targets.json").write_text("[]")
    port = free_port()
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    child = Child.spawn(
        [program, *words, f"--web.listen-address=127.0.0.1:{port}"], log_file=folder / "prometheus.log", cwd=folder
    )
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
            made = Prometheus(folder, f"http://127.0.0.1:{port}", http)
            async with asyncio.timeout(60):
                while True:
                    try:
                        async with http.get(f"{made.url}/-/ready") as reply:
                            if reply.status == 200:
                                break
                    except aiohttp.ClientError:
                        assert child.poll() is None, (folder / "prometheus.log").read_text()
                    await asyncio.sleep(0.1)
            yield made
    finally:
        await child.kill_all()
