"""Which platform a command talks to: the environment's, else the one that runs in this home, else the default ports."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from perdure.embedded.state import USERS_FILE, PlatformUrls, find_running, lock_now, running_state
from perdure.settings import Settings


def locate(settings: Settings) -> Settings:
    """`settings` with the addresses of the running platform for those that nobody gave.

    The offline model of that platform becomes `PERDURE_OFFLINE_MODEL_URL`, unless a model is configured already. A
    platform that ends with its last user has this process as one from now on.
    """
    wanted = {"nats_url", "database_url", "redis_url"} - settings.model_fields_set
    if not wanted or (urls := find_running(settings.home)) is None:
        return settings
    _join(settings.home.resolve())
    use_offline_model(urls)
    return settings.model_copy(update={name: getattr(urls, name) for name in wanted})


def use_offline_model(urls: PlatformUrls) -> None:
    """Let this process and its children find the platform's offline model, unless a real one is configured."""
    if urls.offline_model_url and not (os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")):
        os.environ.setdefault("PERDURE_OFFLINE_MODEL_URL", urls.offline_model_url)


def _join(home: Path) -> None:
    """Be a user of a shared platform until this process ends."""
    state = running_state(home)
    if state is None or not state.shared:
        return
    with suppress(OSError):  # of someone else: to use it is allowed, to keep it is not ours
        lock_now(os.open(home / USERS_FILE, os.O_RDWR), fcntl.LOCK_SH)  # never closed
