"""A container engine: Docker with Compose where one answers, else podman with Debian's podman-compose."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
PROJECT = "perdure-compose-test"
HEALTHY_WITHIN = 300.0

COMPOSE: dict[str, Any] = YAML(typ="safe").load(FILE.read_text())
PARTS: dict[str, dict[str, Any]] = COMPOSE["services"]
ONCE = [name for name, part in PARTS.items() if part["restart"] == "no" and not part.get("profiles")]


class NoEngineError(Exception):
    """Neither Docker nor podman can be used here; the text says what to install."""


class Failed(Exception):
    """A command or a check failed."""


def waves(services: Sequence[str]) -> Iterator[list[str]]:
    """`services` in the order of the file's `depends_on`: each wave may start when those before it are ready."""
    left = {name: {other for other in PARTS[name].get("depends_on", ()) if other in services} for name in services}
    while left:
        free = [name for name, waits in left.items() if not waits & set(left)]
        if not free:
            raise Failed(f"these wait for each other: {', '.join(left)}")
        yield free
        for name in free:
            del left[name]


def ours() -> str:
    """The image that the Dockerfile makes."""
    return str(PARTS["migrations"]["image"])


class Engine:
    """What the test asks of an engine; the two differ in how they bring the file up."""

    program: str

    def __init__(self, ports: dict[str, int]) -> None:
        self.environment = {**os.environ, **{name: str(port) for name, port in ports.items()}}
        self.services = [name for name, part in PARTS.items() if not part.get("profiles")]

    def prepare(self) -> None:
        """Make or fetch the images; leaves out of `services` what there is no image for, and says so."""
        raise NotImplementedError

    def up(self, **scale: int) -> None:
        """Start everything, in order."""
        raise NotImplementedError

    def down(self, *, volumes: bool = False) -> None:
        """Stop and remove the containers and their network; the volumes only when told so."""
        raise NotImplementedError

    def run(self, service: str, *words: str) -> str:
        """`compose run --rm`: one command in a new container of a service; what it says on stdout."""
        raise NotImplementedError

    def healthy(self, container: str) -> bool:
        """Whether a container says that it is well."""
        raise NotImplementedError

    def call(self, *arguments: str) -> str:
        """Run the engine's own command; its output."""
        return self.command(self.program, *arguments)

    def command(self, *words: str, progress: str | None = None) -> str:
        """Run a program; its output, and `Failed` with what it said when it fails.

        Lines that contain `progress` are shown as they come.
        """
        err_to = subprocess.STDOUT if progress else subprocess.PIPE
        options: dict[str, Any] = {"cwd": ROOT, "env": self.environment, "stdin": subprocess.DEVNULL}
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=err_to, text=True, errors="replace", **options
        ) as process:
            said = []
            if progress:
                assert process.stdout
                for line in process.stdout:
                    said.append(line)
                    if progress in line:
                        print(f"      {line.rstrip()[:110]}", flush=True)
            out, err = process.communicate()
        text = "".join(said) + out
        if process.returncode:
            raise Failed(f"`{' '.join(words)}` ended with {process.returncode}:\n{(text + (err or ''))[-4000:]}")
        return text.strip()

    def containers(self, service: str, *, stopped: bool = False) -> list[str]:
        """The ids of the containers of a service that run, or of all of them."""
        labels = {"com.docker.compose.project": PROJECT, "com.docker.compose.service": service}
        filters = [word for name, value in labels.items() for word in ("--filter", f"label={name}={value}")]
        return self.call("ps", *(["--all"] if stopped else []), "--quiet", "--no-trunc", *filters).split()

    def inspect(self, container: str, template: str) -> str:
        """A field of what the engine knows of a container."""
        return self.call("inspect", "--format", template, container)

    def logs(self, service: str) -> str:
        """The last lines of each container of a service."""
        return "\n".join(
            self.command("sh", "-c", f"{self.program} logs --tail 15 {each} 2>&1")
            for each in self.containers(service, stopped=True)
        )

    def ready(self, service: str) -> bool:
        """Whether a service is as those who wait for it want it. Raises `Failed` for a one-shot that failed."""
        if service not in ONCE:
            running = self.containers(service)
            return bool(running) and all(self.healthy(each) for each in running)
        (container,) = self.containers(service, stopped=True)
        state = self.inspect(container, "{{.State.Status}} {{.State.ExitCode}}")
        if state.startswith("exited") and state != "exited 0":
            raise Failed(f"{service} failed ({state}):\n{self.logs(service)}")
        return state == "exited 0"

    def wait(self, service: str) -> None:
        """Wait until a service is `ready`, else `Failed` with what it says."""
        deadline = time.monotonic() + HEALTHY_WITHIN
        while not self.ready(service):
            if time.monotonic() > deadline:
                raise Failed(f"{service} was not ready within {HEALTHY_WITHIN:.0f} s:\n{self.logs(service)}")
            time.sleep(0.5)


class Docker(Engine):
    """Docker Engine with its Compose plugin: it reads all of the file by itself."""

    program = "docker"

    def prepare(self) -> None:
        self._compose("build", progress="#")

    def up(self, **scale: int) -> None:
        scales = [word for name, count in scale.items() for word in ("--scale", f"{name}={count}")]
        self._compose("up", "--detach", *scales)
        for name in self.services:
            self.wait(name)

    def down(self, *, volumes: bool = False) -> None:
        self._compose("down", *(["--volumes"] if volumes else []))

    def run(self, service: str, *words: str) -> str:
        return self._compose("run", "--rm", "-T", service, *words)

    def healthy(self, container: str) -> bool:
        return self.inspect(container, "{{.State.Health.Status}}") == "healthy"

    def _compose(self, *words: str, progress: str | None = None) -> str:
        named = ("docker", "compose", "--project-name", PROJECT, "--file", str(FILE))
        return self.command(*named, *words, progress=progress)


def answers(*words: str) -> bool:
    """Whether a program is there and ends well."""
    if shutil.which(words[0]) is None:
        return False
    return subprocess.run(words, capture_output=True, check=False).returncode == 0
