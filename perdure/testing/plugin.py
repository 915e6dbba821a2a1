"""The pytest plugin: the fixture `harness`, on real servers that start when the first test asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from perdure.agent.base import BaseAgent
    from perdure.testing.harness import Harness
    from perdure.testing.servers import TestServers


@pytest.fixture(scope="session")
def perdure_servers() -> Iterator[TestServers]:
    """NATS, Postgres and Redis for the tests of this session, in a temporary folder."""
    from perdure.testing.servers import running_servers  # noqa: PLC0415 -- a plugin is loaded by every pytest

    with running_servers() as servers:
        yield servers


@pytest.fixture
def harness(perdure_servers: TestServers) -> Callable[..., AbstractAsyncContextManager[Harness]]:
    """What opens a `perdure.testing.Harness` around an agent, as an async context manager."""
    from perdure.testing.harness import Harness as Opened  # noqa: PLC0415 -- a plugin is loaded by every pytest

    @asynccontextmanager
    async def open_harness(
        agent: type[BaseAgent] | BaseAgent,
        *,
        mocks: Mapping[str, Any] | None = None,
        config: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Harness]:
        async with Opened(agent, await perdure_servers.settings(), mocks=mocks, config=config) as opened:
            yield opened

    return open_harness
