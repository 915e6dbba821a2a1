"""Payloads in an object store of JetStream (ADR-20), by their hashes, where `PERDURE_PAYLOAD_STORE` says so.

The bucket is `payloads`, with a namespace `<namespace>-payloads`. See `perdure.store.vault` for what stands there.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError
from nats.js.object_store import ObjectStore

from perdure.bus.streams import ensure_stream

ANSWERS: Final = 2.0  # seconds that the server may take for one message
NAME: Final = "payloads"


class BucketAway(ConnectionError):
    """The object store does not answer, or takes nothing more."""


class Bucket:
    """The object store of one platform. Made by the scheduler, see `ensure`."""

    def __init__(self, nats: Client, namespace: str = "") -> None:
        self._nats = nats
        # Not `nats.jetstream()`: in a namespace that names streams otherwise than object stores are named.
        self._js = JetStreamContext(nats, timeout=ANSWERS)
        self._config = config_of(namespace)
        self._name, self._stream = bucket_of(namespace), str(self._config.name)
        self._store = ObjectStore(self._name, self._stream, self._js)

    async def ensure(self) -> None:
        """Make the bucket if it is not there. Raises `SetupError`."""
        await ensure_stream(self._js, self._config)

    async def put(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`, its hash, unless it is there. Raises `BucketAway`."""
        with self._answering():
            try:
                there = await self._store.get_info(name)
            except NotFoundError:
                there = None
            if there is None or there.size != len(data):
                await self._store.put(name, data)

    async def get(self, name: str) -> bytes | None:
        """What is kept under `name`; None when it is not there, or not whole. Raises `BucketAway`."""
        with self._answering():
            try:
                info = await self._store.get_info(name)
                # The library's own `get` waits for ever for a part that is gone.
                parts, seq = [], 0
                for _ in range(info.chunks or 0):
                    subject = f"$O.{self._name}.C.{info.nuid}"
                    part = await self._js.get_msg(self._stream, seq + 1, subject=subject, direct=True, next=True)
                    parts.append(part.data or b"")
                    seq = int(part.seq or 0)
            except NotFoundError:
                return None
        return b"".join(parts)

    async def delete(self, name: str) -> None:
        """Remove what is kept under `name`, if it is there. Raises `BucketAway`."""
        with self._answering():
            try:
                await self._store.delete(name)
            except NotFoundError:
                return
            # The library leaves a message that says so for each name: they would become more for ever.
            encoded = base64.urlsafe_b64encode(name.encode()).decode()
            await self._js.purge_stream(self._stream, subject=f"$O.{self._name}.M.{encoded}")

    async def names(self, *, after: int, limit: int) -> tuple[list[str], int]:
        """Up to `limit` names of what is kept, and the place to ask from next; none are left when there are none.

        Raises `BucketAway`.
        """
        found: list[str] = []
        subject = f"$O.{self._name}.M.>"
        with self._answering():
            try:
                while len(found) < limit:
                    message = await self._js.get_msg(self._stream, after + 1, subject=subject, direct=True, next=True)
                    after = int(message.seq or 0)
                    encoded = str(message.subject).rpartition(".")[2]
                    found.append(base64.urlsafe_b64decode(encoded).decode())
            except NotFoundError:
                pass
        return found, after

    @contextmanager
    def _answering(self) -> Iterator[None]:
        if not self._nats.is_connected:
            raise BucketAway("NATS is away, and with it the object store of payloads")
        try:
            yield
        except NatsError as error:
            raise BucketAway(
                f"the object store {self._stream} does not do it: {error or type(error).__name__}"
            ) from error


def bucket_of(namespace: str) -> str:
    """The name of the bucket."""
    return f"{namespace}-{NAME}" if namespace else NAME


def config_of(namespace: str) -> StreamConfig:
    """The stream of the bucket, as clients make it for an object store."""
    bucket = bucket_of(namespace)
    return StreamConfig(
        name=f"OBJ_{bucket}",
        description="Large values of runs. One that is wiped stops the runs that need it.",
        subjects=[f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        allow_rollup_hdrs=True,
        allow_direct=True,
    )
