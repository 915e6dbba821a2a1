"""Which platform a command talks to: the environment's, else the one that runs in this home, else the default ports."""

from __future__ import annotations

import os

from perdure.embedded.state import find_running
from perdure.settings import Settings


def locate(settings: Settings) -> Settings:
    """`settings` with the addresses of the running platform for those that nobody gave.

    The offline model of that platform becomes `PERDURE_OFFLINE_MODEL_URL`, unless a model is configured already.
    """
    wanted = {"nats_url", "database_url", "redis_url"} - settings.model_fields_set
    if not wanted or (urls := find_running(settings.home)) is None:
        return settings
    if urls.offline_model_url and not (os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")):
        os.environ.setdefault("PERDURE_OFFLINE_MODEL_URL", urls.offline_model_url)
    return settings.model_copy(update={name: getattr(urls, name) for name in wanted})
