"""The address under which a gateway registers in Consul, which is asked by machines that may not know its name."""

from __future__ import annotations

import socket

import pytest

from services.gateway.service import reached_at


@pytest.mark.parametrize(
    ("name", "said"),
    [("10.1.2.3", "10.1.2.3"), ("fd00::7", "fd00::7"), ("127.0.1.1", "127.0.1.1"), ("localhost", "localhost")],
    ids=["a pod's own", "IPv6", "loopback alone", "a name of loopback alone"],
)
async def test_for_all_addresses_it_is_the_one_of_its_name_if_others_can_reach_it(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    assert await reached_at("0.0.0.0") == said
    assert await reached_at("::") == said


async def test_a_name_that_stands_for_nothing_is_said_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "a" * 64)  # longer than a label may be: nobody is asked
    assert await reached_at("0.0.0.0") == "a" * 64


async def test_an_address_that_was_chosen_is_said_as_it_is():
    assert await reached_at("192.0.2.1") == "192.0.2.1"
