"""What files of deploy/ may name, by the program itself: commands, variables, ports, paths of HTTP."""

from __future__ import annotations

from pathlib import Path

from perdure.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
# Read by the program without a field of `Settings`.
BESIDE_SETTINGS = {"OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL"}


def variables() -> set[str]:
    """Every variable of the environment that a process of ours reads."""
    named: set[str] = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = getattr(alias, "choices", None)
        named.add(str(choices[0]) if choices else f"PERDURE_{name.upper()}")
    return named | BESIDE_SETTINGS


def is_a_program(command: list[str]) -> bool:
    """Whether the image has what a container is told to run."""
    program, *arguments = command
    if program == "python":
        if arguments[0] != "-m":
            return (ROOT / arguments[0]).is_file()
        folder = ROOT / arguments[1].replace(".", "/")
        return (folder / "__main__.py").is_file() or folder.with_suffix(".py").is_file()
    if program != "perdure":
        return False
    if arguments[:2] == ["deploy", "postgres-roles"]:
        return all((ROOT / "agents" / f"{agent}.py").is_file() for agent in arguments[2:])
    return arguments in (["migrate"], ["--help"]) or (arguments[0] == "agent" and (ROOT / arguments[1]).is_file())


def registered_names() -> dict[str, str]:
    """The name under which each service and ready agent registers, by the name of its container."""
    from config_manager.service import ConfigManager
    from perdure.runner.load import load_agent
    from services.console.service import Console
    from services.gateway.service import Gateway
    from services.scheduler.service import Scheduler

    services = {"config-manager": ConfigManager, "scheduler": Scheduler, "gateway": Gateway, "console": Console}
    agents = {name: str(load_agent(str(ROOT / "agents" / f"{name}.py")).name) for name in ("assistant", "activation")}
    return {**{name: service.service_name for name, service in services.items()}, **agents}
