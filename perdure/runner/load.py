"""Finds the agent that `perdure agent FILE_OR_MODULE[:Class]` means."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TypeAlias, cast

from perdure.agent.base import BaseAgent
from perdure.errors import SetupError

AnyAgent: TypeAlias = "type[BaseAgent] | BaseAgent"


def load_agent(target: str) -> AnyAgent:
    """The agent of a file (`agents/mine.py`) or a module (`mine.agents`), by name after a colon or the only one there.

    Raises `SetupError` that says what is wrong: no such file, an error in it (with its line), no agent, or several.
    """
    place, _, attribute = target.partition(":")
    module = _load_file(Path(place)) if place.endswith(".py") or "/" in place else _load_module(place)
    if attribute:
        found = getattr(module, attribute, None)
        if found is None:
            raise SetupError(f"{place} has no {attribute!r}; its agents are: {_names(_agents_of(module))}")
        if not _is_agent(found):
            raise SetupError(f"{attribute!r} in {place} is no agent: subclass BaseAgent, or make a DurableAgent(...)")
        return found  # type: ignore[no-any-return]
    named = vars(module).get("agent")
    if _is_agent(named):
        return cast("AnyAgent", named)
    agents = _agents_of(module)
    if not agents:
        raise SetupError(f"{place} holds no agent: subclass BaseAgent in it, or make a DurableAgent(...)")
    if len(agents) > 1:
        raise SetupError(
            f"{place} holds several agents ({_names(agents)}): name one, as in `{place}:{next(iter(agents))}`"
        )
    return next(iter(agents.values()))


def _names(agents: dict[str, AnyAgent]) -> str:
    return ", ".join(agents) or "none"


def _is_agent(value: object) -> bool:
    return isinstance(value, BaseAgent) or (isinstance(value, type) and issubclass(value, BaseAgent))


def _agents_of(module: ModuleType) -> dict[str, AnyAgent]:
    """What is defined there: instances, and classes that are not merely imported; each once, in the file's order."""
    found: dict[str, AnyAgent] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or not _is_agent(value) or value in found.values():
            continue
        if isinstance(value, BaseAgent) or value.__module__ == module.__name__:
            found[name] = value
    instances = {name: value for name, value in found.items() if isinstance(value, BaseAgent)}
    return {
        name: value
        for name, value in found.items()
        if not any(isinstance(value, type) and type(other) is value for other in instances.values())
    }


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SetupError(f"there is no file {path}; give an agent's file, as in `perdure agent invoices.py`")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SetupError(f"{path} is not a Python file")
    sys.path.insert(0, str(path.parent.resolve()))
    module = importlib.util.module_from_spec(spec)
    known, sys.modules[name] = sys.modules.get(name), module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if known is not None:
            sys.modules[name] = known
        raise SetupError(_broken(str(path), error)) from error
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise SetupError(f"there is no module {name!r} here; for a file give its path, ending in .py") from error
        raise SetupError(_broken(name, error)) from error
    except Exception as error:
        raise SetupError(_broken(name, error)) from error


def _broken(place: str, error: Exception) -> str:
    """Where the author's own code went wrong: the last line of it, not of ours."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or place}, line {error.lineno}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = next((f"{f.filename}, line {f.lineno}" for f in reversed(frames) if f.filename != __file__), place)
    return f"{where}: {type(error).__name__}: {error}"
