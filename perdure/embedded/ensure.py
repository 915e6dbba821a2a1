"""A platform for a program that only wants to use one."""

from __future__ import annotations

import asyncio

from perdure.embedded.platform import Platform
from perdure.embedded.processes import ProcessSpec
from perdure.embedded.state import AlreadyRunning, PlatformUrls, find_running
from perdure.settings import Settings

START_TIMEOUT = 120.0
_POLL = 0.1


async def ensure_platform(
    settings: Settings, *, processes: list[ProcessSpec] | None = None
) -> tuple[PlatformUrls, Platform | None]:
    """The platform of `settings.home`: the one that runs there, else one of our own on free ports.

    In the second case the `Platform` is returned too, and the caller stops it. Servers that the environment gives are
    used either way: when all three are given and `processes` is empty, nothing is started. Two programs that start in
    one home at the same moment share the platform of the first. Raises `SetupError`.
    """
    given = {"nats_url", "database_url", "redis_url"} <= settings.model_fields_set
    if given and not processes:
        return PlatformUrls(settings.nats_url, settings.database_url, settings.redis_url), None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_TIMEOUT
    while True:
        if (urls := await asyncio.to_thread(find_running, settings.home)) is not None:
            return urls, None
        platform = Platform(settings, processes=processes, free_ports=True)
        try:
            return await platform.start(), platform
        except AlreadyRunning:
            # It starts or stops this moment: look again.
            if loop.time() > deadline:
                raise
            await asyncio.sleep(_POLL)
