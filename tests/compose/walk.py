"""What `make compose-test` looks at, from outside of the containers as their users do."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import asyncpg
import nats

from perdure.subjects import inbox
from tests.compose.engine import ONCE, PARTS, Engine, Failed, ours

RUN = "line-of-anna"
ROLE = "a lighthouse keeper"


class Walk:
    """The checks, in order."""

    def __init__(self, engine: Engine, ports: dict[str, int]) -> None:
        self.engine = engine
        self.ports = ports
        said = engine.run("credentials", "show").splitlines()
        words = [shlex.split(line)[1] for line in said if line.startswith("export ")]
        self.urls = dict(word.split("=", 1) for word in words)

    async def all_healthy(self) -> str:
        """Every service has a healthy container, and what runs once ended well."""
        for name in self.engine.services:
            self.engine.wait(name)
        return f"{len(self.engine.services)} services: {', '.join(self.engine.services)}"

    async def ordinary_users(self) -> str:
        """Our containers run as an ordinary user, and can write nothing of their own image."""
        for name in self.engine.services:
            if PARTS[name]["image"] == ours() and name not in ONCE:
                container = self.engine.containers(name)[0]
                assert self.engine.call("exec", container, "id", "-u") == "10001", name
                touched = self.engine.call("exec", container, "sh", "-c", "touch /app/x 2>&1 || true")
                assert "Read-only" in touched, (name, touched)
        size = int(self.engine.call("image", "inspect", "--format", "{{.Size}}", ours()))
        sbom = json.loads(self.engine.call("run", "--rm", ours(), "cat", "sbom.cdx.json"))
        return f"uid 10001, read-only; image of {size / 1e6:.0f} MB, SBOM of {len(sbom['components'])} packages"

    async def asked_from_outside(self) -> str:
        """A NATS request from outside of the containers is answered by an agent; not without a password."""
        for user in ("NATS_URL", "NATS_CLIENT_URL"):
            answer = await self.ask("Who are you?", url=self.urls[user])
        nobody = f"nats://127.0.0.1:{self.ports['NATS_PORT']}"
        try:
            nc = await nats.connect(nobody, allow_reconnect=False, connect_timeout=5, error_cb=quiet)
        except nats.errors.Error as error:
            if "authorization" in str(error).lower():
                return answer
            raise
        await nc.close()
        raise Failed("NATS lets in somebody without a password")

    async def changed_by_sql(self) -> str:
        """An UPDATE in SQL from outside is in the next answers."""
        await self.sql(
            "INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ('assistant', $1, $2)"
            " ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = excluded.config_value",
            *("agent_role", ROLE),
        )
        began = time.monotonic()

        async def knows() -> bool:
            return ROLE in await self.ask("Who are you?")

        await self.until(f"the assistant is {ROLE}", knows)
        return f"an answer had it after {time.monotonic() - began:.2f} s"

    async def key_for_the_gateway(self) -> str:
        """The gateway lets in who has a key, made by `compose run perdure`, and nobody else."""
        made = json.loads(self.engine.run("perdure", "key", "create", "walk", "--role", "admin", "-o", "json"))
        port = self.ports["GATEWAY_PORT"]
        without = await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/v1/models")
        assert without[0] == 401, without
        within = await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/v1/models", made["key"])
        assert within[0] == 200, within
        page = await asyncio.to_thread(fetch, f"http://127.0.0.1:{self.ports['CONSOLE_PORT']}/")
        assert page[0] == 200, page
        return "401 without a key, 200 with it; the console has its page"

    async def rights_of_its_own(self) -> str:
        """What an agent's container knows of is its own, and does not let it do others' work."""
        container = self.engine.containers("assistant")[0]
        seen = self.engine.call("exec", container, "sh", "-c", "ls /; ls /run/perdure; cat /run/perdure/*")
        assert "credentials" not in seen, seen
        told = dict(line.split("=", 1) for line in seen.splitlines() if "=" in line)
        assert set(told) == {"NATS_URL", "DATABASE_URL", "REDIS_URL"}, seen
        own = outside(told["DATABASE_URL"], self.ports["POSTGRES_PORT"])
        refused = []
        for statement in (
            "UPDATE agent_configurations SET config_value = 'x'",
            "ALTER TABLE runs ADD COLUMN x text",
            "SELECT * FROM gateway_keys",
        ):
            try:
                await self.sql(statement, url=own)
            except asyncpg.InsufficientPrivilegeError:
                refused.append(statement)
        assert len(refused) == 3, refused
        heard: list[str] = []

        async def hears(error: Exception) -> None:
            heard.append(str(error))

        url = outside(told["NATS_URL"], self.ports["NATS_PORT"])
        nc = await nats.connect(url, inbox_prefix=inbox("assistant"), error_cb=hears)
        try:
            await nc.publish("config.update", b"{}")
            await nc.flush()

            async def told_so() -> bool:
                return any("config.update" in each for each in heard)

            await self.until("NATS refuses config.update", told_so)
        finally:
            await nc.close()
        return "no configuration, no tables, no keys, no config.update"

    async def examined(self) -> str:
        """`perdure doctor`, asked as the operator, finds no error."""
        report = json.loads(self.engine.run("perdure", "doctor", "--all", "-o", "json"))
        found = [f"{each['area']} {each['check']}" for each in report["findings"] if each["status"] != "ok"]
        assert report["healthy"], report
        return f"{len(report['findings'])} findings; not ok: {', '.join(found) or 'none'}"

    async def watched(self) -> str:
        """Prometheus, where there is one, is told by each of our processes."""
        if "prometheus" not in self.engine.services:
            return "left out: there is no Prometheus here"
        wanted = {name for name in self.engine.services if "PERDURE_METRICS_PORT" in PARTS[name].get("environment", ())}
        wanted -= {*ONCE, "offline-model"}
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/query?query=up"

        async def all_up() -> bool:
            _, text = await asyncio.to_thread(fetch, url)
            up = [each for each in json.loads(text)["data"]["result"] if each["value"][1] == "1"]
            return len(up) >= len(wanted)

        await self.until(f"{len(wanted)} processes are up for Prometheus", all_up)
        return f"{len(wanted)} processes are up for it"

    async def scaled(self) -> str:
        """`--scale assistant=3`: three are registered, and the requests are shared."""
        self.engine.up(assistant=3)
        assert len(self.engine.containers("assistant")) == 3

        async def three() -> bool:
            return len(await self.registered("assistant")) == 3

        await self.until("three assistants are registered", three)
        await asyncio.gather(*(self.ask(f"What is {number}?") for number in range(30)))
        claimed = await self.number("SELECT count(DISTINCT process_id) FROM runs WHERE agent_name = 'assistant'")
        assert claimed >= 2
        return f"30 requests answered, runs were executed by {claimed} processes"

    async def killed_in_mid_run(self) -> str:
        """The only container of an agent is killed in the middle of a run; started again, it ends the run."""
        await self.request("config.set.activation", {"configurations": {"step_seconds": 1.5}})
        await self.request("run.start.activation", {"task": "activate line for Anna", "run_id": RUN, "session_id": "w"})
        # The tool works in the background: a run of its own, whose id begins with the one of its conversation's run.
        counted = f"SELECT count(*) FROM journal WHERE run_id LIKE '{RUN}-%'"
        tool = f"SELECT run_id, status FROM runs WHERE run_id LIKE '{RUN}-%'"

        async def under_way() -> bool:
            rows = await self.sql(tool)
            return bool(rows) and rows[0]["status"] != "completed" and await self.number(counted) >= 3

        await self.until("the background tool is at work", under_way)
        (container,) = self.engine.containers("activation")
        self.engine.call("kill", "--signal", "KILL", container)
        before = await self.number(counted)
        (row,) = await self.sql(tool)
        assert row["status"] != "completed", "it was over already"
        self.engine.call("start", container)

        async def done() -> bool:
            return all(row["status"] == "completed" for row in await self.sql(tool))

        await self.until("the run has ended", done, seconds=120)
        steps = await self.sql(
            f"SELECT path, count(*) AS rows FROM journal WHERE run_id LIKE '{RUN}-%' AND kind = 'step' GROUP BY 1"
        )
        assert len(steps) == 4
        assert all(row["rows"] == 1 for row in steps)
        return f"{before} journal rows at the kill, {await self.number(counted)} at the end, each step recorded once"

    async def kept_over_down_and_up(self) -> str:
        """`down` and `up` again: runs, settings and passwords are there."""
        before = await self.number("SELECT count(*) FROM runs")
        self.engine.down()
        assert not self.engine.containers("postgres", stopped=True)
        self.engine.up()
        assert await self.number("SELECT count(*) FROM runs") >= before > 0
        answer = await self.ask("Who are you now?")
        assert ROLE in answer, answer
        return f"{before} runs, and the assistant is still {ROLE}"

    # -- means -------------------------------------------------------------------------------------------------------
    async def ask(self, task: str, *, url: str | None = None) -> str:
        """`run.ask.assistant`; the output."""
        return str((await self.request("run.ask.assistant", {"task": task, "timeout": 60}, url=url))["output"])

    async def request(self, subject: str, body: dict[str, Any], *, url: str | None = None) -> dict[str, Any]:
        """One request over NATS, as `operator` unless `url` names another one."""
        nc = await connected(url or self.urls["NATS_URL"])
        try:
            reply = json.loads((await nc.request(subject, json.dumps(body).encode(), timeout=65)).data)
        finally:
            await nc.close()
        assert "error" not in reply, reply
        return dict(reply)

    async def registered(self, service: str) -> set[str]:
        """The instances that answer `$SRV.PING`."""
        nc = await connected(self.urls["NATS_URL"])
        found: set[str] = set()
        try:
            inbox = await nc.subscribe(nc.new_inbox())
            await nc.publish(f"$SRV.PING.{service}", reply=inbox.subject)
            while True:
                found.add(json.loads((await inbox.next_msg(timeout=1)).data)["id"])
        except nats.errors.TimeoutError:
            return found
        finally:
            await nc.close()

    async def sql(self, statement: str, *arguments: Any, url: str | None = None) -> list[asyncpg.Record]:
        """One statement at the published port, as `operator` unless `url` names another one."""
        connection = await asyncpg.connect(url or self.urls["DATABASE_URL"])
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def number(self, statement: str) -> int:
        """The number that a statement gives."""
        return int((await self.sql(statement))[0][0])

    async def until(self, what: str, check: Callable[[], Awaitable[bool]], *, seconds: float = 60) -> None:
        """Wait for `check`, else `Failed` that names `what`."""
        deadline = time.monotonic() + seconds
        while not await check():
            if time.monotonic() > deadline:
                raise Failed(f"not within {seconds:.0f} s: {what}")
            await asyncio.sleep(0.2)


async def connected(url: str) -> nats.NATS:
    """To NATS, as the user of `url`, as any NATS client does it."""
    return await nats.connect(url)


def outside(url: str, port: int) -> str:
    """A container's address of a server, as the host has it."""
    parts = urlsplit(url.strip("'"))
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()


def fetch(url: str, key: str | None = None) -> tuple[int, str]:
    """(status, text) of a GET; 0 and why when nothing answers."""
    request = Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urlopen(request, timeout=10) as answer:
            return int(answer.status), answer.read().decode(errors="replace")
    except OSError as error:
        return int(getattr(error, "code", 0)), str(error)


async def quiet(_error: Exception) -> None:
    """What is refused is asked for here."""
