"""What a client is asked to send and cannot travel is refused by the name of its field."""

from __future__ import annotations

import pytest

from perdure.client import Client
from perdure.client.connection import encoded
from perdure.errors import InvalidRequest
from perdure.settings import Settings


@pytest.mark.parametrize("value", [2**70, [{"deep": -(2**70)}], {1, 2}, object()])
def test_what_is_no_json_is_refused_by_its_field(value):
    with pytest.raises(InvalidRequest, match="field 'payload' cannot travel as JSON"):
        encoded({"run_id": "r-1", "payload": value})


def test_what_is_json_travels():
    assert encoded({"payload": [1, None, "x", 2**63]}) == b'{"payload":[1,null,"x",9223372036854775808]}'


async def test_a_keyword_that_no_start_has_is_refused_by_its_name():
    client = Client(Settings(nats_url="nats://127.0.0.1:9"))
    with pytest.raises(TypeError, match="'queu'"):
        await client.start("worker", 1, queu="x")  # type: ignore[call-arg]
