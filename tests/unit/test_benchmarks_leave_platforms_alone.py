from __future__ import annotations

import os
from pathlib import Path

from benchmarks.own import own_settings

ROOT = Path(__file__).parents[2]
SERVERS = {"NATS_URL": "nats_url", "DATABASE_URL": "database_url", "REDIS_URL": "redis_url"}


def test_servers_that_the_environment_names_are_not_measured_on(monkeypatch, tmp_path):
    for name in SERVERS:
        monkeypatch.setenv(name, "postgresql://somebody@127.0.0.1:5432/theirs")
    settings = own_settings(str(tmp_path))
    assert settings.home == tmp_path
    assert not settings.model_fields_set & set(SERVERS.values())
    assert not os.environ.keys() & SERVERS.keys(), "a process that is started inherits none either"


def test_every_platform_of_a_benchmark_is_its_own():
    for file in ROOT.glob("benchmarks/**/*.py"):
        assert file.name == "own.py" or "Settings(home=" not in file.read_text(), file
