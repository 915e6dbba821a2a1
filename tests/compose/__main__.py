"""docker-compose.yml, run for real: `make compose-test`.

Docker with its Compose plugin is used where an engine answers, else podman (Debian: podman, podman-compose, runc). Each
line that it prints is something that was seen; the first that is not ends it with what the containers said. Ports are
free ones, the project and its volumes have a name of their own and are removed at the end. Images stay, for the next
time: Docker's where it keeps them, podman's under --store.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from perdure.embedded.ports import free_port
from tests.compose.engine import Docker, Engine, NoEngineError, answers
from tests.compose.podman import Podman
from tests.compose.walk import Walk

PORTS = (
    *("GATEWAY_PORT", "CONSOLE_PORT", "NATS_PORT", "POSTGRES_PORT", "REDIS_PORT"),
    *("CONSUL_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT", "JAEGER_PORT"),
)
STORE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "perdure" / "compose-test"


def engine_for(ports: dict[str, int], store: Path) -> Engine:
    """Docker where its engine answers, else podman. Raises `NoEngineError` that says what to install."""
    if answers("docker", "compose", "version") and answers("docker", "info"):
        return Docker(ports)
    return Podman(ports, store)


async def walk(engine: Engine, ports: dict[str, int]) -> None:
    """Every check, in order; each prints what it saw."""
    checks = Walk(engine, ports)
    for name in (
        *("all_healthy", "ordinary_users", "asked_from_outside", "changed_by_sql", "key_for_the_gateway"),
        *("rights_of_its_own", "examined", "watched", "scaled", "killed_in_mid_run", "kept_over_down_and_up"),
    ):
        check: Callable[[], Awaitable[str]] = getattr(checks, name)
        began = time.monotonic()
        try:
            seen = await check()
        except Exception as error:
            error.add_note(f"in the check {name}: {check.__doc__}")
            raise
        print(f"ok {name} ({time.monotonic() - began:.1f} s): {seen}", flush=True)


def main() -> int:
    """The exit code: 0 when all was seen, 1 when something was not, 2 where no engine can be used."""
    parser = argparse.ArgumentParser(prog="python -m tests.compose", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the containers, to look at them")
    parser.add_argument("--store", type=Path, default=STORE, help=f"where podman keeps images and volumes: {STORE}")
    said = parser.parse_args()
    ports = {name: free_port() for name in PORTS}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whoever ends it finds nothing left behind
    try:
        engine = engine_for(ports, said.store.resolve())
    except NoEngineError as error:
        print(error, file=sys.stderr)
        return 2
    began = time.monotonic()
    try:
        print(f"with {type(engine).__name__}; making the images", flush=True)
        engine.prepare()
        print(f"images are there ({time.monotonic() - began:.0f} s); starting", flush=True)
        engine.down(volumes=True)
        engine.up()
        asyncio.run(walk(engine, ports))
    except Exception:
        for service in engine.services:
            print(f"--- {service}\n{engine.logs(service)}", file=sys.stderr)
        raise
    finally:
        if not said.keep:
            engine.down(volumes=True)
    print(f"all of it was seen, in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
