"""Histories of runs as files, and their replay against new code."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from perdure.testing.replay import Diverged, Replayed, replay

if TYPE_CHECKING:
    from perdure.agent.base import BaseAgent
    from perdure.client import Client

FORMAT: Final = "perdure.history/1"


class Recorder:
    """Keeps histories of runs in `folder`, one JSON file a run, and replays them.

    A history holds what the journal holds: the task, the results of steps, the configuration with its references to
    secrets, never a secret's value. Keep it as carefully as the data of the runs.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    async def record(self, client: Client, *run_ids: str) -> list[Path]:
        """Write the history of each run as it is now; the files, in order. Raises `NotFound`, `Unavailable`."""
        files = []
        for run_id in run_ids:
            run = await client.get(run_id)
            files.append(await self.keep(await run.history()))
        return files

    async def keep(self, history: dict[str, Any]) -> Path:
        """Write a history as `RunHandle.history` gives it, over an earlier one of the same run."""
        file = self.folder / f"{history['run']['run_id']}.json"
        text = orjson.dumps({"format": FORMAT, **history}, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        await asyncio.to_thread(_write, file, text + b"\n")
        return file

    async def replay(self, agent: type[BaseAgent] | BaseAgent) -> list[Replayed]:
        """Replay every history in the folder against `agent`, in memory: no step is executed, nothing is sent.

        Raises `Diverged` for the first that the code disagrees with and names all of them, and `ValueError` for a
        folder without histories, a file that is none, or one of another agent.
        """
        found: list[Replayed] = []
        diverged: list[tuple[Path, Diverged]] = []
        for file, history in await asyncio.to_thread(_read, self.folder):
            try:
                found.append(await replay(agent, history))
            except Diverged as error:
                diverged.append((file, error))
            except (KeyError, TypeError) as error:
                raise ValueError(f"{file} is no whole history ({error!r}): export the run again") from error
        if diverged:
            first = diverged[0][1]
            if len(diverged) > 1:
                lines = "".join(f"\n  {file.name}: {error.difference['message']}" for file, error in diverged)
                first.args = (f"{len(diverged)} of {len(diverged) + len(found)} histories diverge:{lines}",)
            raise first
        return found


def _write(file: Path, text: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text)


def _read(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every history of a folder, or the one that `folder` is, in the order of their names."""
    files = [folder] if folder.is_file() else sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"there is no history in {folder}: write some with `perdure runs export RUN_ID -o {folder}`")
    found = []
    for file in files:
        try:
            said = orjson.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            has = said.get("format") if isinstance(said, dict) else None
            raise ValueError(
                f"{file}: field 'format' is {has!r}, and this version reads {FORMAT!r}: export the run again"
            )
        found.append((file, said))
    return found
