"""Another team's program: nats-py and nothing of Perdure. Prints what it saw as JSON; see test_plain_nats_client."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import nats


async def main() -> None:
    nc = await nats.connect(os.environ["NATS_URL"])
    saw: dict[str, object] = {"updates": [], "applied": []}
    done = asyncio.Event()

    async def updated(message) -> None:
        saw["updates"].append(json.loads(message.data))

    async def applied(message) -> None:
        saw["applied"].append({"subject": message.subject, **json.loads(message.data)})
        done.set()

    async def ask(subject: str, payload: object, key: str | None = None) -> dict:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        reply = await nc.request(subject, data, timeout=20)
        body = json.loads(reply.data)
        if key is not None:
            saw[key] = {"body": body, "headers": dict(reply.headers or {})}
        return body

    await nc.subscribe("config.update", cb=updated)
    await nc.subscribe("config.applied.>", cb=applied)
    await nc.flush()
    await ask("run.ask.assistant", {"task": "Who are you?"}, "asked")
    task = {"task": "word count of 'one two three'", "run_id": "plain-1"}
    started = await ask("run.start.assistant", task, "started")
    for _ in range(400):
        got = await ask("run.get", {"run_id": started["run_id"]}, "got")
        if got["status"] in ("completed", "failed"):
            break
        await asyncio.sleep(0.02)
    await ask("run.start.assistant", task, "again")
    await ask("run.start.assistant", {"task": "something else", "run_id": "plain-1"}, "other_task")
    await ask("config.get.assistant", b"", "config")
    await ask("config.set.assistant", {"configurations": {"agent_role": "a lighthouse keeper"}}, "set")
    await asyncio.wait_for(done.wait(), 20)
    await ask("run.ask.assistant", {"task": "Who are you?"}, "asked_after")
    await ask("run.get", {"run_id": "no-such-run"}, "unknown_run")
    await ask("run.start.assistant", b"{not json", "malformed")
    await ask("run.ask.nobody", {"task": 1, "timeout": 0.2}, "unknown_agent")
    await ask("run.start.assistant", {"task": "x" * 900_000, "session_id": "s" * 200}, "bad_session")
    ping = await nc.request("$SRV.PING.assistant", b"", timeout=5)
    saw["ping"] = json.loads(ping.data)
    await nc.close()
    json.dump(saw, sys.stdout)


asyncio.run(main())
