"""The user that Postgres runs as when we are root, which it refuses to run as."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from perdure.errors import SetupError

_PREFERRED = "pgserver"
_FALLBACK = "nobody"
_USER_DATABASE = Path("/etc")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine by number."""

    name: str
    uid: int
    gid: int


def other_account() -> Account | None:
    """`None` for an ordinary user; as root the account for Postgres, made when it is not there.

    Raises `SetupError` when the machine has none that can be used.
    """
    if os.geteuid() != 0:
        return None
    found = _look_up(_PREFERRED)
    if found is None:
        with _one_at_a_time():
            found = _look_up(_PREFERRED)
            if found is None:
                _create(_PREFERRED)
                found = _look_up(_PREFERRED) or _look_up(_FALLBACK)
    if found is None:
        raise SetupError(
            f"Postgres does not run as root, and there is neither a user {_PREFERRED} nor {_FALLBACK}; "
            f"run `useradd --system {_PREFERRED}`, start as an ordinary user, or set DATABASE_URL"
        )
    return found


def _look_up(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold every other process of ours off while an account is made.

    useradd looks whether the name is taken before it locks the user database: the later of two at the same moment
    replaces the earlier one's number, and what was handed over to that number belongs to nobody.
    """
    folder = os.open(_USER_DATABASE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _create(name: str) -> None:
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is None:
        return
    # Failure is no fault: the fallback is used, and when there is none either the caller says so.
    subprocess.run(  # noqa: S603  fixed arguments
        [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name],
        check=False,
        capture_output=True,
    )


def open_path(path: Path) -> None:
    """Let other users pass through (not list) the folders above `path`."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXGRP | stat.S_IXOTH)
            _log.warning(
                "Postgres runs as another user than root: that user may now pass through this folder",
                action="postgres.path_opened",
                folder=str(folder),
            )


def hand_over(folder: Path, account: Account) -> None:
    """Make `account` the owner of `folder` and all in it."""
    if folder.stat().st_uid == account.uid:
        return
    for path in (*folder.rglob("*"), folder):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
