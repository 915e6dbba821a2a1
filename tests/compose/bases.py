"""Base images where no registry can be reached: made here, under the names that the files use.

Debian and Python by debootstrap, from the mirror that this machine's apt uses; NATS, Postgres and Redis by the programs
of the wheels in `.venv`, Prometheus by the one of Debian's package, if it is installed. They stand in for the published
images as far as docker-compose.yml asks them anything.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.embedded import binaries
from tests.compose.engine import ROOT

if TYPE_CHECKING:
    from tests.compose.podman import Podman

DEBIAN = "localhost/perdure-test-debian:1"
PACKAGES = "python3,python3-venv,ca-certificates,netbase,tzdata,wget"
HERE = Path(__file__).parent


def python_image() -> str:
    """The base that the Dockerfile names."""
    return re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0]


def ensure(engine: Podman, image: str) -> bool:
    """Have `image`: from its registry, made here, or from an earlier time. Whether that worked."""
    name = image if image.count("/") > 1 else f"docker.io/{image}" if "/" in image else f"docker.io/library/{image}"
    asked = (engine.program, "pull", "--quiet", name)
    if subprocess.run(asked, capture_output=True, check=False, timeout=600).returncode == 0:
        return True
    make = _recipes().get(image.partition(":")[0])
    if make is None:
        return _there(engine, name)
    print(f"   {image}: no registry answers, making it here", flush=True)
    if not _there(engine, DEBIAN):
        _debian(engine)
    folder = engine.store / "context"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder)
    # Each time: what has not changed is in podman's cache.
    words = ("build", "--network", "host", "--build-arg", f"BASE={DEBIAN}", "--tag", name, str(folder))
    engine.command(engine.program, *words, progress="STEP")
    shutil.rmtree(folder)
    return True


def pip_arguments(store: Path) -> list[str]:
    """Mounts for a build, so that pip in it finds what pip here finds: its settings, its folders, its certificates."""
    said = dict(re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", _pip_config(), re.MULTILINE))
    (store / "pip.conf").write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in said.items()))
    mounts = {str(store / "pip.conf"): "/etc/pip.conf"}
    for name, value in said.items():
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                # The pages of an index on disk refer to files beside them.
                mounted = path.parent if name.endswith("index-url") else path
                mounts[str(mounted)] = str(mounted)
    return [f"--volume={here}:{there}:ro" for here, there in mounts.items()]


def _pip_config() -> str:
    """What `pip config list` says; a venv may be without pip, so others are asked, too."""
    for pip in ([sys.executable, "-m", "pip"], ["pip"], ["pip3"]):
        if shutil.which(pip[0]) is not None:
            asked = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
            if asked.returncode == 0:
                return asked.stdout
    return ""


def _there(engine: Podman, name: str) -> bool:
    return subprocess.run((engine.program, "image", "exists", name), capture_output=True, check=False).returncode == 0


def _debian(engine: Podman) -> None:
    """A small Debian with Python, of this machine's own release and mirror."""
    root = engine.store / "debian"
    shutil.rmtree(root, ignore_errors=True)
    release = engine.command("sh", "-c", '. /etc/os-release && echo "$VERSION_CODENAME"')
    mirror = engine.command("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages")
    sites = [line.split()[0] for line in mirror.splitlines() if line.split()[1:] == [release]]
    words = ("debootstrap", "--variant=minbase", f"--include={PACKAGES}", release, str(root), *sites[:1])
    engine.command(*words, progress="...")
    tar = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run([engine.program, "import", "-", DEBIAN], stdin=tar.stdout, check=True, capture_output=True)
    if tar.wait():
        raise RuntimeError("tar failed")
    shutil.rmtree(root)


def _recipes() -> dict[str, Callable[[Path], None]]:
    made = {"python": _python, "nats": _nats, "postgres": _postgres, "redis": _redis}
    return made | ({"prom/prometheus": _prometheus} if shutil.which("prometheus") else {})


def _containerfile(folder: Path, *lines: str) -> None:
    (folder / "Containerfile").write_text("\n".join(("ARG BASE", "FROM ${BASE}", *lines, "")))


def _python(folder: Path) -> None:
    _containerfile(folder, "RUN ln -s /usr/bin/python3 /usr/local/bin/python", 'CMD ["python"]')


def _nats(folder: Path) -> None:
    shutil.copy(binaries.nats_server(), folder / "nats-server")
    _containerfile(
        folder, "COPY nats-server /usr/local/bin/", 'ENTRYPOINT ["nats-server"]', 'CMD ["--config", "/etc/nats.conf"]'
    )


def _redis(folder: Path) -> None:
    programs = binaries.redis_server().parent
    for name in ("redis-server", "redis-cli"):
        shutil.copy(programs / name, folder / name)
    _containerfile(
        folder,
        "COPY redis-server redis-cli /usr/local/bin/",
        "RUN useradd --system redis && mkdir /data && chown redis /data",
        *("USER redis", "WORKDIR /data", 'CMD ["redis-server"]'),
    )


def _prometheus(folder: Path) -> None:
    shutil.copy(shutil.which("prometheus") or "", folder / "prometheus")
    _containerfile(
        folder,
        "COPY prometheus /bin/prometheus",
        "RUN mkdir /prometheus && chown nobody:nogroup /prometheus",
        *("USER nobody", "WORKDIR /prometheus", 'ENTRYPOINT ["/bin/prometheus"]'),
    )


def _postgres(folder: Path) -> None:
    package = binaries.postgres_folder().parent.parent
    # The wheel's own libraries are found from the programs by where they are: the folders stay as they are.
    for each in (package.with_name(f"{package.name}.libs"), package / "pginstall"):
        if each.is_dir():
            shutil.copytree(each, folder / "wheel" / each.relative_to(package.parent), symlinks=True)
    shutil.copy(HERE / "postgres-entrypoint.sh", folder / "entrypoint.sh")
    _containerfile(
        folder,
        "COPY wheel /usr/local/wheel",
        "COPY --chmod=755 entrypoint.sh /usr/local/bin/entrypoint.sh",
        "RUN useradd --system --create-home postgres && mkdir -p /var/lib/postgresql/data"
        " && chown -R postgres /var/lib/postgresql",
        f"ENV PATH=/usr/local/wheel/{package.name}/pginstall/bin:$PATH PGDATA=/var/lib/postgresql/data",
        *("USER postgres", 'ENTRYPOINT ["entrypoint.sh"]', 'CMD ["postgres"]'),
    )
