"""The processes of a platform: which there are, and one of them as a child."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from nats.aio.client import Client

from perdure.embedded.child import Child
from perdure.embedded.ports import HOST
from perdure.embedded.ports import free_port as any_port
from perdure.embedded.presence import instances
from perdure.embedded.supervised import Supervised
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.platform_files import platform_root
from perdure.subjects import agent_name


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to run: `argv` follows the Python program, `after` names the processes it waits for.

    `port` is the port on loopback that it serves HTTP on; it is told in the variable `port_variable`.
    """

    name: str
    argv: tuple[str, ...]
    after: tuple[str, ...] = ()
    port: int | None = None
    port_variable: str = ""


# What agents need, and the whole platform, in the order of its start. Each is ready when it answers `$SRV.PING`.
CORE = (
    ProcessSpec("config_manager", ("-m", "config_manager")),
    ProcessSpec("scheduler", ("-m", "services.scheduler")),
)
GATEWAY = ProcessSpec(
    "gateway",
    ("-m", "services.gateway"),
    after=tuple(service.name for service in CORE),
    port=8000,
    port_variable="PERDURE_GATEWAY_PORT",
)
CONSOLE = ProcessSpec(
    "console", ("-m", "services.console"), after=(GATEWAY.name,), port=8080, port_variable="PERDURE_CONSOLE_PORT"
)
SERVICES = (*CORE, GATEWAY, CONSOLE)


def declared_processes(settings: Settings) -> list[ProcessSpec]:
    """The services and the ready agents that `settings.agents` names (a comma list; empty is none).

    Raises `SetupError` for an agent whose file is not there.
    """
    gateway = replace(GATEWAY, port=settings.gateway_port)
    console = replace(CONSOLE, port=settings.console_port)
    return [*CORE, gateway, console, *(_agent(name) for name in settings.agents.split(",") if name.strip())]


def _agent(said: str) -> ProcessSpec:
    folder = platform_root() / "agents"
    try:
        name = agent_name(said.strip())
    except ValueError as error:
        raise SetupError(f"PERDURE_AGENTS: {error}") from error
    file = folder / f"{name.replace('-', '_')}.py"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.py"))) or "none"
        raise SetupError(f"PERDURE_AGENTS names {name!r}, but there is no {file}; there are: {known}")
    after = tuple(service.name for service in CORE)
    return ProcessSpec(f"agent-{name}", ("-m", "perdure.cli.main", "agent", str(file)), after)


def python_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a Python child: ours, with the platform's folder and this perdure on its path."""
    package = Path(__file__).resolve().parent.parent.parent
    path = dict.fromkeys([str(platform_root()), str(package), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in path if each), **(extra or {})}


class PlatformProcess(Supervised):
    """One process of the platform as a child of ours; `start` returns when it answers on the bus."""

    start_timeout = 60.0

    def __init__(
        self, spec: ProcessSpec, *, home: Path, env: Mapping[str, str], nc: Client, free_port: bool = False
    ) -> None:
        port = any_port() if free_port and spec.port is not None else spec.port
        super().__init__(home / "log" / f"{spec.name}.log", port=port, wanted=None if free_port else port)
        self.name = spec.name
        self._spec = spec
        self._env = env
        self._nc = nc
        self._instance = ""

    @property
    def url(self) -> str | None:
        """Where it serves HTTP, for one that does."""
        return None if self.port is None else f"http://{HOST}:{self.port}"

    def spawn(self) -> Child:
        """Start it under an id of this very start: an older process of that name may still answer."""
        self._instance = f"{socket.gethostname()}-{self.name}-{uuid4().hex[:8]}"
        own = {"PERDURE_PROCESS": self.name, "PERDURE_INSTANCE_ID": self._instance}
        if self.port is not None:
            own[self._spec.port_variable] = str(self.port)
        return Child.spawn(
            [sys.executable, "-P", *self._spec.argv],
            log_file=self.log_file,
            env=python_environment({**self._env, **own}),
        )

    async def ready(self) -> bool:
        """Whether this start of it answers."""
        return self._instance in await instances(self._nc, wait=0.1, until=self._instance)


def in_waves(specs: Sequence[ProcessSpec]) -> list[list[ProcessSpec]]:
    """The specs grouped so that each group may start at once when the groups before it are ready.

    Raises `SetupError` when one waits for a process that is not in the list or for itself.
    """
    waves: list[list[ProcessSpec]] = []
    left, done = list(specs), set[str]()
    while left:
        wave = [spec for spec in left if done.issuperset(spec.after)]
        if not wave:
            raise SetupError(f"these processes wait for one that is never started: {[spec.name for spec in left]}")
        waves.append(wave)
        done.update(spec.name for spec in wave)
        left = [spec for spec in left if spec not in wave]
    return waves
