from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import httpx2
import pytest

from perdure.embedded.ports import free_port
from tests.command import environment
from tests.edge_support import all_events, problem
from tests.support import eventually, temporary_folder

PROGRAM = """\
import sys
from perdure import AgentRunner, BaseAgent, workflow

class Adder(BaseAgent):
    @workflow
    async def run(self, ctx, task):
        return await ctx.step("add", self.add, task["a"], task["b"])

    async def add(self, a: int, b: int) -> int:
        return a + b

runner = AgentRunner()
print(runner.run_sync(Adder, {"a": 1, "b": 2}), flush=True)
runner.serve(Adder, host="127.0.0.1", port=int(sys.argv[1]))
runner.shutdown(Adder)
print("over", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM])
async def test_a_program_serves_its_agent_until_it_is_asked_to_stop(how: signal.Signals):
    with temporary_folder("serve") as home:
        (home / "adder.py").write_text(PROGRAM)
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(home / "adder.py"), str(port)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(Path(home)),
        )
        try:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:

                async def ready() -> bool:
                    try:
                        return (await http.get("/readyz")).status_code == 200
                    except httpx2.TransportError:
                        assert process.returncode is None, (await process.stderr.read()).decode()
                        return False

                await eventually(ready, timeout=90)
                said = await http.post("/run", json={"task": {"a": 2, "b": 3}}, headers={"Prefer": "wait=20"})
                assert (said.status_code, said.json()["output"]) == (200, 5)
                assert said.json()["instance_id"] == said.json()["run_id"]
                seen = await all_events(http, f"{said.json()['status_url']}/events")
                assert seen[-1].kind == "run.completed"
                assert len((await http.get("/runs")).json()["runs"]) == 2
                problem(await http.post("/agents/other/run", json={"task": 1}), "not_found", 404)
                assert [each["name"] for each in (await http.get("/agents")).json()["agents"]] == ["adder"]
            process.send_signal(how)
            out, err = await asyncio.wait_for(process.communicate(), 60)
            assert out.decode().split() == ["3", "over"], err.decode()
            assert process.returncode == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
