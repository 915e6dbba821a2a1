"""Where the parts that are not the library stand: services, ready agents and migrations."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from perdure.errors import SetupError


@lru_cache(maxsize=1)
def platform_root() -> Path:
    """The folder that holds `config_manager/`, `services/`, `agents/` and `migrations/`.

    In an installed wheel that is `perdure/_platform`, in a checkout the repository itself. Raises `SetupError` when
    neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_platform", package.parent):
        if (folder / "migrations").is_dir():
            return folder
    raise SetupError(
        f"the platform's files (migrations/, services/, agents/) are neither in {package / '_platform'} nor in "
        f"{package.parent}; install the perdure wheel again, or run from a complete checkout"
    )
