"""The wheel in a fresh environment, used from a folder outside the repository."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from perdure.store.platform_files import platform_root
from tests.command import READY, environment
from tests.support import temporary_folder

INVOICES = """
from perdure import BaseAgent, Retry, StepContext, workflow

class Invoices(BaseAgent):
    name = "invoices"

    @workflow
    async def run(self, ctx, task):
        lines = await ctx.step("read", self.read, task["file"])
        parts = await ctx.gather(*(ctx.step("price", self.price, line, retry=Retry(max_attempts=5)) for line in lines))
        await ctx.sleep("cool-off", 0.2)
        sent = await ctx.call("mailer", {"total": sum(parts)})
        return {"sent": sent}

    async def read(self, file: str) -> list[str]:
        return [file, file * 2]

    async def price(self, line: str, step: StepContext) -> float:
        assert step.idempotency_key
        return float(len(line))
"""
MAILER = """
from perdure import BaseAgent, workflow

class Mailer(BaseAgent):
    @workflow
    async def run(self, ctx, task):
        return {"id": 1, **task}
"""
SCRIPT = """
from invoices import Invoices
from mailer import Mailer
from perdure import AgentRunner

runner = AgentRunner()
runner.run_sync(Mailer, {})
print(runner.run_sync(Invoices, {"file": "f"}))
"""
# What pip makes of an entry point.
ENTRY_POINT = """#!{python}
import sys
from importlib.metadata import entry_points
sys.exit(entry_points(group="console_scripts")["perdure"].load()())
"""
TASK = '{"file": "f"}'
OUTCOME = {"sent": {"id": 1, "total": 3.0}}


@dataclass(frozen=True)
class Installed:
    """A fresh environment that has the wheel."""

    folder: Path
    site_packages: Path

    def run(self, command: str, *arguments: str, cwd: Path, timeout: float = 120, **said: str) -> str:
        """A program of this environment, run to its end; what it printed."""
        done = subprocess.run(
            [self.folder / "bin" / command, *arguments],
            cwd=cwd,
            env=self.environment(cwd, **said),
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def environment(self, cwd: Path, **said: str) -> dict[str, str]:
        kept = environment(cwd / ".perdure", **said)
        return {name: value for name, value in kept.items() if name not in ("PYTHONPATH", "PERDURE_HOME")}


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    with temporary_folder("wheel") as folder:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
        done = subprocess.run([*build, str(platform_root())], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = folder.glob("*.whl")
        # Without pip, which Debian keeps apart; the wheel is pure Python, so unpacking is installing.
        venv.create(folder / "venv", symlinks=True)
        python = folder / "venv" / "bin" / "python"
        asked = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        site_packages = Path(asked.decode().strip())
        with zipfile.ZipFile(wheel) as files:
            files.extractall(site_packages)
        # The dependencies are those of the environment that runs the tests: no network.
        theirs = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
        (site_packages / "dependencies.pth").write_text("\n".join(theirs))
        script = folder / "venv" / "bin" / "perdure"
        script.write_text(ENTRY_POINT.format(python=python))
        script.chmod(0o755)
        yield Installed(folder / "venv", site_packages)


@pytest.fixture
def shop() -> Iterator[Path]:
    """A user's own folder with two agents."""
    with temporary_folder("shop") as folder:
        (folder / "invoices.py").write_text(INVOICES)
        (folder / "mailer.py").write_text(MAILER)
        (folder / "main.py").write_text(SCRIPT)
        yield folder


def test_the_wheel_brings_one_import_package_with_the_platform_inside(installed: Installed, shop: Path):
    found = {path.name for path in installed.site_packages.iterdir() if path.suffix != ".pth"}
    assert {name for name in found if not name.endswith(".dist-info")} - {"__pycache__"} == {"perdure"}
    inside = installed.site_packages / "perdure" / "_platform"
    assert {path.name for path in inside.iterdir()} == {"config_manager", "services", "agents", "migrations", "deploy"}
    assert [path.name for path in (inside / "deploy").rglob("*.sql")] == ["roles.sql"]
    assert {path.name for path in (inside / "migrations").glob("*.sql")} == {
        path.name for path in (platform_root() / "migrations").glob("*.sql")
    }
    where = installed.run("python", "-c", "import perdure; print(perdure.__file__)", cwd=shop)
    assert Path(where.strip()).parent == installed.site_packages / "perdure"


def test_an_agent_runs_from_a_script_with_no_server_started_first(installed: Installed, shop: Path):
    assert installed.run("python", "main.py", cwd=shop).strip() == str(OUTCOME)
    assert not (shop / ".perdure" / "platform.json").exists()


def test_an_agent_runs_as_a_process_of_a_platform_started_by_hand(installed: Installed, shop: Path):
    ready = installed.run("perdure", "up", "--detach", cwd=shop, PERDURE_AGENTS="assistant")
    agents: list[subprocess.Popen[bytes]] = []
    try:
        assert ready.splitlines()[-1] == READY.decode()
        for file in ("invoices.py", "mailer.py"):
            command = [installed.folder / "bin" / "perdure", "agent", file]
            with (shop / f"{file}.log").open("wb") as log:
                env = installed.environment(shop)
                agents.append(subprocess.Popen(command, cwd=shop, env=env, stdout=log, stderr=log))
        said = installed.run("perdure", "run", "invoices", TASK, "--wait", "-o", "json", cwd=shop)
        assert orjson.loads(said)["output"] == OUTCOME
        assert re.search(r"\boffline model\b", installed.run("perdure", "run", "assistant", "Who are you?", cwd=shop))
    finally:
        for agent in agents:
            agent.terminate()
        codes = [agent.wait(timeout=60) for agent in agents]
        assert installed.run("perdure", "down", cwd=shop).strip() == "stopped"
    assert codes == [0, 0]
    assert not (shop / ".perdure" / "platform.json").exists()
