"""Takes messages from a durable JetStream consumer as they come, never more than the caller has room for.

A standing pull request is kept at the server, so a message is delivered at once. What nats-py's own `fetch` leaves to
its caller is done here: a request that expired, a server that restarted, a stream or a consumer that is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError

from perdure.bus.namespace import stream_at
from perdure.bus.outgoing import Outgoing
from perdure.bus.streams import ensure_streams
from perdure.errors import SetupError

log = structlog.get_logger(__name__)

EXPIRES: Final = 20.0  # seconds a pull request stands at the server, unless the caller's are fewer
HEARTBEAT: Final = 2.0  # seconds between the server's signs of life while it stands, at most
ACK: Final = b"+ACK"
PASS_ON: Final = b'-NAK {"delay": 50000000}'  # nanoseconds


class PullConsumer:
    """One durable consumer of `stream` for the messages of `subject`.

    `room()` is how many messages the caller can take now, `take(message)` is called for each and must not wait; it
    answers with `ack` once the work is safe. What is not acked within `ack_wait` seconds is delivered again, elsewhere
    if need be. Call `more()` when room has come up. A request stands `expires` seconds at the server: for so long
    messages may still go to a process that hangs. Acknowledgements leave with what is in `outgoing`, if that is given.
    """

    def __init__(
        self,
        nats: Client,
        *,
        stream: str,
        subject: str,
        durable: str,
        room: Callable[[], int],
        take: Callable[[Msg], None],
        ack_wait: float = 30.0,
        expires: float = EXPIRES,
        outgoing: Outgoing | None = None,
    ) -> None:
        self._nats = nats
        self._outgoing = outgoing or Outgoing(nats)
        self._stream = stream
        self._subject = subject
        self._durable = durable
        self._room = room
        self._take = take
        self._ack_wait = ack_wait
        self._expires = expires
        self._heartbeat = min(HEARTBEAT, expires / 2.5)
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._asked = 0  # messages that standing requests may still bring
        self._heard = 0.0
        self._again = asyncio.Event()
        self._closed = False

    @property
    def asked(self) -> int:
        """How many messages standing requests may still bring."""
        return max(0, self._asked)

    async def run(self) -> None:
        """Take messages until `stop`; repair whatever is missing on the way."""
        loop = asyncio.get_running_loop()
        try:
            while not self._closed:
                try:
                    await self._ensure()
                    await self._listen()
                except (NatsError, APIError, SetupError, TimeoutError, OSError) as error:
                    log.info(
                        "consumer not ready", action="pull.retry", subject=self._subject, error=type(error).__name__
                    )
                    await asyncio.sleep(0.2)
                    continue
                self._heard = loop.time()
                while not self._closed and loop.time() - self._heard < 2.5 * self._heartbeat:
                    self._again.clear()
                    await self._ask()
                    try:
                        async with asyncio.timeout(self._heartbeat):
                            await self._again.wait()
                    except TimeoutError:
                        continue
                    if not self._nats.is_connected or self._asked < 0:
                        break
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Take no more; what was delivered and not taken is delivered again elsewhere."""
        self._closed = True
        self.flush()
        self._again.set()
        subscription, self._subscription = self._subscription, None
        if subscription is not None and self._nats.is_connected:
            await subscription.unsubscribe()

    def more(self) -> None:
        """There is room again."""
        if self._asked <= self._room() // 2:
            self._again.set()

    def reset(self) -> None:
        """The connection was lost and is back: look whether stream and consumer are still there."""
        self._asked = -1
        self._again.set()

    def ack(self, message: Msg) -> None:
        """The work of `message` is safe: it need not come again. Waits for nothing."""
        self._say(message, ACK)

    def pass_on(self, message: Msg) -> None:
        """`message` is for somebody else who takes from this consumer: deliver it again in 50 ms. Waits for nothing."""
        self._say(message, PASS_ON)

    def _say(self, message: Msg, word: bytes) -> None:
        if message.reply and self._nats.is_connected:  # else it comes again
            self._outgoing.put(message.reply, word)

    def flush(self) -> None:
        """Send what was acknowledged and passed on, now."""
        self._outgoing.flush()

    async def _ensure(self) -> None:
        js = self._nats.jetstream()
        await ensure_streams(js)
        await js.add_consumer(
            self._stream,
            ConsumerConfig(
                name=self._durable,  # the server then takes the filter from the subject, where permissions see it
                durable_name=self._durable,
                filter_subject=self._subject,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self._ack_wait,
                max_ack_pending=20_000,
                max_waiting=512,
            ),
        )

    async def _listen(self) -> None:
        if self._subscription is not None and self._nats.is_connected:
            await self._subscription.unsubscribe()
        self._inbox = self._nats.new_inbox()
        self._asked = 0
        self._subscription = await self._nats.subscribe(
            self._inbox, cb=self._arrived, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    async def _ask(self) -> None:
        room = self._room() - self._asked
        if room <= 0 or (self._asked > 0 and room < 16):
            return
        self._asked += room
        times = {"expires": int(self._expires * 1e9), "idle_heartbeat": int(self._heartbeat * 1e9)}
        request = orjson.dumps({"batch": room, **times})
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream_at(self._nats, self._stream)}.{self._durable}"
        await self._nats.publish(subject, request, reply=self._inbox)

    async def _arrived(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        status = message.headers.get("Status") if message.headers else None
        if status is None:
            self._asked -= 1
            self._take(message)
        elif status != "100":  # not a sign of life: the request is over, or was refused
            headers = message.headers or {}
            left, reason = headers.get("Nats-Pending-Messages"), headers.get("Description", "")
            gone = status == "503" or (status == "409" and ("Deleted" in reason or "Shutdown" in reason))
            self._asked = -1 if gone else max(0, self._asked - int(left or self._asked))
            if status == "409":
                log.info("pull request ended", action="pull.ended", reason=reason)
            self._again.set()
            return
        self.more()
