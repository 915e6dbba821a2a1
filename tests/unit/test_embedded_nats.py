from __future__ import annotations

import os

import pytest

from perdure.embedded.nats_server import NatsServer


@pytest.mark.parametrize(("cores", "threads"), [(None, "1"), (1, "1"), (2, "1"), (3, "1"), (8, "4")])
def test_nats_leaves_half_of_the_cores_to_the_others(monkeypatch, tmp_path, cores, threads):
    monkeypatch.delenv("GOMAXPROCS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert NatsServer(tmp_path).environment()["GOMAXPROCS"] == threads


def test_whoever_says_how_many_threads_nats_has_is_heard(monkeypatch, tmp_path):
    monkeypatch.setenv("GOMAXPROCS", "7")
    assert NatsServer(tmp_path).environment()["GOMAXPROCS"] == "7"
