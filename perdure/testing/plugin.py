"""The pytest plugin: the fixture `harness`, on real servers that start when the first test asks for it.

`replay_histories` replays recorded runs against an agent's code, without any server.

With `--perdure-always-replay` every harness replays its agent's runs at every await.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from perdure.agent.base import BaseAgent
    from perdure.testing.harness import Harness
    from perdure.testing.replay import Replayed
    from perdure.testing.servers import TestServers


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of this plugin."""
    group = parser.getgroup("perdure")
    group.addoption(
        "--perdure-always-replay",
        action="store_true",
        help="replay every run from its journal at every await, so that code which does not replay is found at once",
    )


@pytest.fixture(scope="session")
def perdure_servers() -> Iterator[TestServers]:
    """NATS, Postgres and Redis for the tests of this session, in a temporary folder."""
    from perdure.testing.servers import running_servers  # noqa: PLC0415 -- a plugin is loaded by every pytest

    with running_servers() as servers:
        yield servers


@pytest.fixture
def harness(
    request: pytest.FixtureRequest, perdure_servers: TestServers
) -> Callable[..., AbstractAsyncContextManager[Harness]]:
    """What opens a `perdure.testing.Harness` around an agent, as an async context manager."""
    from perdure.testing.harness import Harness as Opened  # noqa: PLC0415 -- a plugin is loaded by every pytest

    @asynccontextmanager
    async def open_harness(
        agent: type[BaseAgent] | BaseAgent,
        *,
        mocks: Mapping[str, Any] | None = None,
        config: Mapping[str, str] | None = None,
        always_replay: bool | None = None,
    ) -> AsyncIterator[Harness]:
        replay = request.config.getoption("perdure_always_replay") if always_replay is None else always_replay
        settings = await perdure_servers.settings()
        async with Opened(agent, settings, mocks=mocks, config=config, always_replay=replay) as opened:
            yield opened

    return open_harness


@pytest.fixture
def replay_histories() -> Callable[[type[BaseAgent] | BaseAgent, str | Path], Awaitable[list[Replayed]]]:
    """What replays the histories of a folder against an agent; see `perdure.testing.Recorder.replay`."""
    from perdure.testing.recorder import Recorder  # noqa: PLC0415 -- a plugin is loaded by every pytest

    async def replayed(agent: type[BaseAgent] | BaseAgent, folder: str | Path) -> list[Replayed]:
        return await Recorder(folder).replay(agent)

    return replayed
