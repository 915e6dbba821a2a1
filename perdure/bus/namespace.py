"""Namespaces: several platforms on one nats-server that do not hear one another.

With `PERDURE_NAMESPACE=staging` every subject begins with `ns.staging.` at the server, `$SRV` too, and every stream's
name with `staging-`. It is done here, where the connection is made: all other code knows subjects without a prefix.
Inboxes and JetStream's own API stay as they are.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, ConsumerInfo, StreamConfig, StreamInfo

ROOT: Final = "ns"  # the first token; no subject of a platform without a namespace begins with it
AS_THEY_ARE: Final = ("_INBOX.", "_REPLY.", "$JS.", "$SYS.", "$KV.", "$O.")


class BusClient(Client):
    """A connection whose `flush` is about all that was sent before.

    It remembers what the server has refused it, and sends nothing in the clear where TLS is on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()  # subjects, in capitals

    def _connect_command(self) -> bytes:
        if "tls" in self.options and not self._server_info.get("tls_required"):  # nats-py would go on without
            raise NatsError("the server offers no TLS, and PERDURE_TLS_CA asks for it")
        return super()._connect_command()

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py's PING overtakes what waits for its flusher task: the PONG would then tell nothing of that.
        if self._pending and self.is_connected and self._transport is not None:
            waiting, self._pending, self._pending_data_size = self._pending, [], 0
            self._transport.writelines(waiting)
        await super()._send_ping(future)


class NamespacedClient(BusClient):
    """A connection whose subjects are all in one namespace."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace = namespace
        self._prefix = f"{ROOT}.{namespace}."

    def at_server(self, subject: str) -> str:
        """`subject` as the server and its other clients know it."""
        return subject if not subject or subject.startswith(AS_THEY_ARE) else self._prefix + subject

    async def publish(self, subject: str, payload: bytes = b"", reply: str = "", headers: Any = None) -> None:
        """As `Client.publish`, in the namespace. A request is published, too."""
        await super().publish(self.at_server(subject), payload, self.at_server(reply), headers)

    async def subscribe(self, subject: str, *arguments: Any, **named: Any) -> Subscription:
        """As `Client.subscribe`, in the namespace."""
        return await super().subscribe(self.at_server(subject), *arguments, **named)

    def _build_message(self, sid: int, subject: bytes, *rest: Any) -> Any:
        return super()._build_message(sid, subject.removeprefix(self._prefix.encode()), *rest)

    def jetstream(self, **options: Any) -> JetStreamContext:
        """As `Client.jetstream`; streams and their subjects are the namespace's own."""
        return _NamespacedStreams(self, **options)


def client_in(namespace: str) -> BusClient:
    """A client, not yet connected; "" is no namespace."""
    return NamespacedClient(namespace) if namespace else BusClient()


class _NamespacedStreams(JetStreamContext):
    """What we ask of JetStream about streams and consumers, with their names at the server."""

    def __init__(self, client: NamespacedClient, **options: Any) -> None:
        super().__init__(client, **options)
        self._client = client

    async def stream_info(self, name: str, subjects_filter: str | None = None) -> StreamInfo:
        there = subjects_filter and self._client.at_server(subjects_filter)
        info = await super().stream_info(stream_at(self._client, name), there)
        prefix = self._client.at_server("x")[:-1]
        ours = [subject.removeprefix(prefix) for subject in info.config.subjects or ()]
        if info.state.subjects:
            counts = {subject.removeprefix(prefix): count for subject, count in info.state.subjects.items()}
            info = replace(info, state=replace(info.state, subjects=counts))
        return replace(info, config=replace(info.config, name=name, subjects=ours))

    async def add_stream(self, config: StreamConfig | None = None, **params: Any) -> StreamInfo:
        return await super().add_stream(self._at_server(config or StreamConfig(**params)))

    async def update_stream(self, config: StreamConfig | None = None, **params: Any) -> StreamInfo:
        return await super().update_stream(self._at_server(config or StreamConfig(**params)))

    async def add_consumer(
        self, stream: str, config: ConsumerConfig | None = None, timeout: float | None = None, **params: Any
    ) -> ConsumerInfo:
        wanted = config or ConsumerConfig(**params)
        if wanted.filter_subject:
            wanted = replace(wanted, filter_subject=self._client.at_server(wanted.filter_subject))
        return await super().add_consumer(stream_at(self._client, stream), wanted, timeout)

    def _at_server(self, config: StreamConfig) -> StreamConfig:
        subjects = [self._client.at_server(subject) for subject in config.subjects or ()]
        return replace(config, name=stream_at(self._client, str(config.name)), subjects=subjects)


def stream_at(nc: Client, name: str) -> str:
    """The stream `name` as the server of `nc` knows it, for requests to JetStream's own API."""
    return f"{nc.namespace}-{name}" if isinstance(nc, NamespacedClient) else name


def subject_at(nc: Client, subject: str) -> str:
    """`subject` as the server of `nc` knows it, for what is named inside a message."""
    return nc.at_server(subject) if isinstance(nc, NamespacedClient) else subject
