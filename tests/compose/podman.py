"""Podman with Debian's podman-compose 1.0, and what that does not do by itself.

It starts containers in the file's order, those they depend on once more, and does not wait for conditions; it knows no
`--scale`, no profiles and no `stop_grace_period`. And podman runs health checks by systemd's timers, which a small VM
may not have. So the waves, the number of replicas and the asking after health are done here, by what the file says.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from ruamel.yaml import YAML

from tests.compose import bases
from tests.compose.engine import FILE, PARTS, PROJECT, ROOT, Engine, Failed, NoEngineError, ours, waves

NEEDED = ("podman", "podman-compose", "runc", "debootstrap")
INSTALL = "apt-get install podman podman-compose runc debootstrap netavark aardvark-dns catatonit"
DRAIN = 30  # seconds: the file's stop_grace_period
# crun, podman's default, refuses hybrid cgroups; systemd's cgroup manager wants a systemd.
OPTIONS = ("--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "file")
# Podman's own default asks for more than a machine with low limits gives.
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
SCRIPT = """#!/bin/sh
# podman with the storage and the options of the compose test
command=$1
shift
case $command in
    run | create | build) exec podman {options} "$command" {limits} "$@" ;;
    *) exec podman {options} "$command" "$@" ;;
esac
"""


class Podman(Engine):
    """Podman as root, with a storage of its own under `store`: no image made here is taken for a registry's."""

    def __init__(self, ports: dict[str, int], store: Path) -> None:
        super().__init__(ports)
        if missing := [name for name in NEEDED if shutil.which(name) is None]:
            raise NoEngineError(
                f"neither Docker with Compose nor podman can be used: {', '.join(missing)} not found. "
                f"As root on Debian: {INSTALL}"
            )
        store.mkdir(parents=True, exist_ok=True)
        self.store = store
        self._scale: dict[str, int] = {}
        options = ("--root", str(store / "storage"), "--runroot", str(store / "run"), *OPTIONS)
        script = store / "podman"
        script.write_text(SCRIPT.format(options=shlex.join(options), limits=shlex.join(LIMITS)))
        script.chmod(0o755)
        self.program = str(script)

    def prepare(self) -> None:
        for image in dict.fromkeys(PARTS[name]["image"] for name in self.services):
            if image != ours() and not bases.ensure(self, image):
                left_out = [name for name in self.services if PARTS[name]["image"] == image]
                self.services = [name for name in self.services if name not in left_out]
                print(f"   {', '.join(left_out)}: left out, {image} cannot be had or made here", flush=True)
        bases.ensure(self, bases.python_image())
        told = bases.pip_arguments(self.store)
        self.command(*(self.program, "build", "--network", "host", *told, "--tag", ours(), str(ROOT)), progress="STEP")
        self.call("image", "prune", "--force", "--filter", "until=24h")  # what earlier builds left

    def up(self, **scale: int) -> None:
        self._scale |= scale
        for wave in waves(list(scale) or self.services):
            self._compose("up", "--detach", "--no-build", *wave)
            for name in wave:
                self.wait(name)

    def down(self, *, volumes: bool = False) -> None:
        ids = self.call("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
        if ids:
            self.call("stop", "--time", str(DRAIN), *ids)  # all at a time; podman-compose: one after the other
        self._compose("down", *(["--volumes"] if volumes else []))
        self.call("network", "rm", "--force", f"{PROJECT}_default")

    def run(self, service: str, *words: str) -> str:
        said = self._compose("run", "--rm", "--no-deps", "-T", service, *words)
        # It tells what it does, and then how it ended, around what the command says.
        told = said.partition(f"\n{self.program} run ")[2].partition("\n")[2]
        answer, _, code = told.rpartition("exit code: ")
        if code.strip() != "0":
            raise Failed(f"`{' '.join(words)}` of {service} failed:\n{said}")
        return answer.strip()

    def healthy(self, container: str) -> bool:
        asked = (self.program, "healthcheck", "run", container)
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def _compose(self, *words: str) -> str:
        files = [FILE]
        if self._scale:
            files.append(self.store / "scale.yml")
            replicas = {name: {"deploy": {"replicas": count}} for name, count in self._scale.items()}
            with files[-1].open("w") as file:
                YAML(typ="safe").dump({"services": replicas}, file)
        named = [word for file in files for word in ("--file", str(file))]
        return self.command("podman-compose", "--podman-path", self.program, "--project-name", PROJECT, *named, *words)
