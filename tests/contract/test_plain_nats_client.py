from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import orjson
import pytest

from tests.integration.agent_support import load
from tests.platform import in_process

SCRIPT = Path(__file__).with_name("plain_client.py")


@pytest.fixture
async def saw(settings, nc, monkeypatch):
    """What a program without Perdure sees of a running platform."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    async with in_process(settings, nc, load("assistant")):
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SCRIPT),
            env={"NATS_URL": settings.nats_url, "PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await program.communicate()
    assert program.returncode == 0, err.decode()
    return orjson.loads(out)


async def test_a_program_with_nats_alone_can_use_all_of_it(saw):
    assert "perdure" not in SCRIPT.read_text().replace("Perdure", "").lower().replace("of perdure", "")
    asked = saw["asked"]["body"]
    assert asked["status"] == "completed"
    assert asked["run_id"]
    assert "assistant" in asked["output"]

    assert saw["started"]["body"] == {"status": "accepted", "run_id": "plain-1"}
    got = saw["got"]["body"]
    assert got["status"] == "completed"
    assert got["agent"] == "assistant"
    assert got["steps"]
    assert "3" in got["output"]

    assert saw["again"]["body"] == {"status": "accepted", "run_id": "plain-1"}
    assert saw["other_task"]["body"]["error"]["code"] == "conflict"
    assert saw["other_task"]["headers"]["Nats-Service-Error-Code"] == "409"

    config = saw["config"]["body"]
    assert config["status"] == "success"
    assert config["configurations"] == {}
    after = saw["set"]["body"]
    assert after["configurations"] == {"agent_role": "a lighthouse keeper"}
    assert after["revision"] > config["revision"]
    (update,) = saw["updates"]
    assert update["agent_name"] == "assistant"
    assert update["updated_keys"] == ["agent_role"]
    assert update["revision"] == after["revision"]
    applied = saw["applied"][-1]
    assert applied["subject"] == "config.applied.assistant"
    assert (applied["status"], applied["revision"], applied["errors"]) == ("applied", after["revision"], {})
    assert "lighthouse keeper" in saw["asked_after"]["body"]["output"]

    assert saw["unknown_run"]["body"]["error"]["code"] == "not_found"
    assert saw["malformed"]["body"]["error"]["code"] == "invalid_request"
    assert "JSON" in saw["malformed"]["body"]["error"]["message"]
    assert saw["unknown_agent"]["body"]["status"] == "running"
    assert "session_id" in saw["bad_session"]["body"]["error"]["message"]
    assert saw["ping"]["type"] == "io.nats.micro.v1.ping_response"
    assert saw["ping"]["metadata"]["agent"] == "assistant"


async def test_no_error_reply_holds_a_traceback_or_a_repr(saw):
    for key, reply in saw.items():
        if isinstance(reply, dict) and "body" in reply:
            text = orjson.dumps(reply).decode()
            assert "Traceback" not in text, key
            assert "Error(" not in text, key
