"""Real processes for chaos tests: started with the environment of one test, killed and stopped by their own pid."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from perdure.embedded.child import Child, last_words
from perdure.settings import Settings
from perdure.store.platform_files import platform_root
from tests.command import REPLAY


@dataclass
class Processes:
    """The processes of one test; what is left of them ends with it."""

    settings: Settings
    folder: Path
    children: list[Child] = field(default_factory=list)

    def start(self, module: str, name: str, **environment: str) -> Child:
        """`python -m module` as instance `name`; its output goes to a log named after that."""
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PERDURE_", "CONSUL_"))},
            "NATS_URL": self.settings.nats_url,
            "DATABASE_URL": self.settings.database_url,
            "REDIS_URL": self.settings.redis_url,
            "PERDURE_HOME": str(self.folder),
            "PERDURE_INSTANCE_ID": name,
            "PERDURE_LOG_FORMAT": "json",
            "PYTHONPATH": str(platform_root()),
            **({REPLAY: "true"} if self.settings.always_replay else {}),
            **environment,
        }
        child = Child.spawn([sys.executable, "-m", module], log_file=self.log(name), env=env, cwd=self.folder)
        self.children.append(child)
        return child

    def log(self, name: str) -> Path:
        """The log of instance `name`."""
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        """The last words of instance `name`."""
        return last_words(self.log(name), 0)


@asynccontextmanager
async def processes(settings: Settings, folder: Path) -> AsyncIterator[Processes]:
    """Start processes in it; they are killed at its end."""
    made = Processes(settings, folder)
    try:
        yield made
    finally:
        for child in made.children:
            child.send(signal.SIGCONT)  # a stopped process does not hear a kill of its children
            await child.kill_all()
