"""What is put together leaves in its order, in one write, and is counted when it cannot leave."""

from __future__ import annotations

from nats.aio.client import Client

from perdure.bus.connection import PENDING_SIZE, connect
from perdure.bus.outgoing import PACE, Outgoing
from tests.support import eventually


async def _heard(nc: Client, subject: str) -> list[tuple[str, bytes]]:
    heard: list[tuple[str, bytes]] = []

    async def note(message):
        heard.append((message.subject, message.data))

    await nc.subscribe(subject, cb=note)
    await nc.flush()
    return heard


async def test_messages_arrive_in_the_order_in_which_they_were_put(nc):
    heard = await _heard(nc, "together.*")
    outgoing = Outgoing(nc)
    expected = [(f"together.{at % 3}", b"%d" % at) for at in range(500)]
    for subject, payload in expected:
        assert outgoing.put(subject, payload, soon=subject.endswith("2"))
    await eventually(lambda: len(heard) == 500)
    assert heard == expected


async def test_a_message_is_put_in_the_namespace_of_its_connection(settings, nc):
    heard = await _heard(nc, "ns.staging.>")
    inside = await connect(settings.model_copy(update={"namespace": "staging"}), "test")
    try:
        Outgoing(inside).put("together.1", b"\r\nPUB evil 0\r\n")
        await eventually(lambda: heard == [("ns.staging.together.1", b"\r\nPUB evil 0\r\n")])
    finally:
        await inside.close()


async def test_what_cannot_leave_is_counted_and_nothing_else_is_lost(nc):
    heard = await _heard(nc, "together.*")
    outgoing = Outgoing(nc)
    assert not outgoing.put("together.1", b"x" * (nc.max_payload + 1))
    assert outgoing.put("together.2", b"small")
    await eventually(lambda: heard == [("together.2", b"small")])
    assert (outgoing.lost, outgoing.away_since) == (1, None)
    gone = Outgoing(await connect_and_close(nc))
    assert not gone.put("together.3", b"")
    since = gone.away_since
    assert since is not None
    assert not gone.put("together.3", b"")
    assert (gone.lost, gone.away_since) == (2, since), "since the first that could not leave"


async def test_a_server_that_takes_nothing_is_as_good_as_away(nc):
    outgoing, pending = Outgoing(nc), nc._pending_data_size
    since = None
    for number in (1, 2):
        assert outgoing.put("together.1", b"x", soon=True)
        nc._pending_data_size = PENDING_SIZE + 1  # what was sent stands in the client's buffer, and this is its bound
        outgoing.flush()
        assert outgoing.lost == number
        since = since or outgoing.away_since
    assert since is not None
    assert outgoing.away_since == since
    nc._pending_data_size = pending


async def connect_and_close(nc: Client) -> Client:
    gone = Client()
    await gone.connect(str(nc.connected_url.geturl()))
    await gone.close()
    return gone


async def test_what_a_frozen_process_has_put_does_not_leave(nc):
    heard = await _heard(nc, "together.*")
    outgoing = Outgoing(nc)
    outgoing.put("together.1", b"frozen", soon=True)
    outgoing.hold()
    await nc.publish("together.2", b"later")
    await eventually(lambda: heard)
    assert heard == [("together.2", b"later")]


async def test_what_can_wait_leaves_at_a_pace_and_with_what_cannot(nc):
    heard = await _heard(nc, "together.*")
    outgoing = Outgoing(nc)
    outgoing.put("together.1", b"now", soon=True)
    outgoing.flush()
    outgoing.put("together.2", b"later")
    assert outgoing._timer is not None
    assert outgoing._timer.when() >= outgoing._left_at + PACE
    outgoing.put("together.3", b"now", soon=True)
    await eventually(lambda: len(heard) == 3)
    assert [payload for _, payload in heard] == [b"now", b"later", b"now"]
