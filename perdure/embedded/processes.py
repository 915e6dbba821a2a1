"""The processes of a platform: which there are, and one of them as a child."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from nats.aio.client import Client

from perdure.embedded.child import Child, begin_log, last_words, port_was_taken
from perdure.embedded.ports import HOST, free_port, is_free
from perdure.embedded.presence import instances
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


_PORT_TRIES = 3


class PlatformProcess:
    """One process of the platform as a child of ours; `start` returns when it answers on the bus."""

    start_timeout = 60.0

    def __init__(
        self, spec: ProcessSpec, *, home: Path, env: Mapping[str, str], nc: Client, free_port: bool = False
    ) -> None:
        self.name = spec.name
        self.log_file = home / "log" / f"{spec.name}.log"
        self.port: int | None = None
        self._free_port = free_port
        self._spec = spec
        self._env = env
        self._nc = nc
        self._child: Child | None = None
        self._log_begins = 0
        self._settled = False  # once it has answered at its port, that is where it is looked for

    @property
    def pid(self) -> int:
        """The process id. Raises `SetupError` when it was never started."""
        if self._child is None:
            raise SetupError(f"{self.name} is not started")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code of the ended process, negative for a signal; `None` while it runs or before its start."""
        return self._child.poll() if self._child else None

    @property
    def url(self) -> str | None:
        """Where it serves HTTP, for one that does."""
        return None if self.port is None else f"http://{HOST}:{self.port}"

    @property
    def note(self) -> str:
        """What a user should know about it: that its usual port was taken."""
        if self.port in (None, self._spec.port) or self._free_port:
            return ""
        return f"port {self._spec.port} is taken, uses {self.port}"

    def _own_port(self) -> dict[str, str]:
        """The variable that names its port: the usual one, else a free one; the same at each further start."""
        if self._spec.port is None:
            return {}
        if self.port is None:
            self.port = self._spec.port if not self._free_port and is_free(self._spec.port) else free_port()
        return {self._spec.port_variable: str(self.port)}

    async def start(self) -> None:
        """Start it and wait until it answers. Raises `SetupError` with the end of its log when it does not."""
        for _ in range(_PORT_TRIES):
            try:
                await self._start()
            except SetupError:
                # Another program took the port since it was looked at: at a first start another port will do. Not
                # asked of the port: that program may have given it back by now.
                if self._settled or self.port is None or not port_was_taken(self.log_file, self._log_begins):
                    raise
                self.port = free_port()
            else:
                self._settled = True
                return
        await self._start()

    async def _start(self) -> None:
        # Found by an id of this very start: an older process of that name may still answer.
        instance = f"{socket.gethostname()}-{self.name}-{uuid4().hex[:8]}"
        self._log_begins = begin_log(self.log_file)
        self._child = Child.spawn(
            [sys.executable, "-P", *self._spec.argv],
            log_file=self.log_file,
            env=python_environment(
                {**self._env, **self._own_port(), "PERDURE_PROCESS": self.name, "PERDURE_INSTANCE_ID": instance}
            ),
        )
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if not self.running:
                raise SetupError(f"{self.name} ended with exit code {self.exit_code}: {self._said()}")
            if instance in await instances(self._nc, wait=0.1, until=instance):
                return
        await self.kill()
        raise SetupError(f"{self.name} did not answer within {self.start_timeout:.0f} s: {self._said()}")

    async def stop(self, *, timeout: float = 20.0) -> None:
        """Let it drain (SIGTERM); after `timeout` seconds it is killed."""
        if self._child is None or self._child.poll() is not None:
            return
        self._child.send(signal.SIGTERM)
        if not await self._child.wait(timeout):
            await self.kill()

    async def kill(self) -> None:
        """End it at once, with all that it started."""
        if self._child is not None:
            await self._child.kill_all()

    def _said(self) -> str:
        return f"{last_words(self.log_file, self._log_begins) or 'no output'} (log: {self.log_file})"


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
