"""The machine: room on its disks, open files, its clock beside those of the servers."""

from __future__ import annotations

import asyncio
import resource
import shutil
import sys
from pathlib import Path

from perdure.doctor.findings import Finding, Notes
from perdure.settings import Settings

LEAST_FREE = 1024**3  # bytes
LEAST_SHARE = 0.05
LEAST_FILES = 1024
SKEW_WARNS = 1.0  # seconds
SKEW_BREAKS = 30.0  # tokens and signatures are refused past it


async def look(settings: Settings) -> list[Finding]:
    """Disk, open files, Python."""
    notes = Notes("machine")
    await asyncio.to_thread(_disk, notes, settings.home)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < LEAST_FILES:
        notes.warn(
            "open files",
            f"a process may have {soft} files and connections open",
            f"`ulimit -n {max(LEAST_FILES, min(65_536, hard))}` before the start (containers: ulimits, nofile)",
        )
    else:
        notes.ok("open files", f"limit {soft}")
    notes.ok("Python", sys.version.split()[0])
    return notes.findings


def _disk(notes: Notes, home: Path) -> None:
    folder = home.resolve()
    while not folder.exists():
        folder = folder.parent
    room = shutil.disk_usage(folder)
    said = f"{room.free / 1e9:.1f} GB of {room.total / 1e9:.1f} GB are free at {folder}"
    if room.free < LEAST_FREE or room.free < LEAST_SHARE * room.total:
        notes.error(
            "disk",
            said,
            "Free some room there, or set PERDURE_HOME to a larger disk: Postgres and NATS stop when theirs is full",
        )
    else:
        notes.ok("disk", said)


def judge_clock(notes: Notes, server: str, skew: float) -> None:
    """`skew` is how many seconds the clock of `server` is ahead of this machine's."""
    said = f"the clock of {server} and this one differ by {abs(skew):.1f} s"
    fix = f"Let NTP set the clocks of this machine and of the machine of {server} (`timedatectl set-ntp true`)"
    if abs(skew) > SKEW_BREAKS:
        notes.error("clock", said, fix)
    elif abs(skew) > SKEW_WARNS:
        notes.warn("clock", said, fix)
    else:
        notes.ok("clock", said)
