"""What authors test their agents with, and the fakes that stand for what a test cannot have.

With `pip install perdure` pytest has the fixture `harness` (see `perdure.testing.plugin`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.lazy import exports

if TYPE_CHECKING:
    from perdure.testing.clock import FakeClock
    from perdure.testing.crash import crash_at
    from perdure.testing.harness import Harness, HarnessRun
    from perdure.testing.models import Call, ScriptedModel
    from perdure.testing.recorder import Recorder
    from perdure.testing.replay import Diverged, Replayed

# Every pytest of an environment with Perdure loads this package for its plugin, so nothing is imported before its use.
_HOMES = {
    "Call": "perdure.testing.models",
    "Diverged": "perdure.testing.replay",
    "FakeClock": "perdure.testing.clock",
    "Harness": "perdure.testing.harness",
    "HarnessRun": "perdure.testing.harness",
    "Recorder": "perdure.testing.recorder",
    "Replayed": "perdure.testing.replay",
    "ScriptedModel": "perdure.testing.models",
    "crash_at": "perdure.testing.crash",
}

__all__ = [
    "Call",
    "Diverged",
    "FakeClock",
    "Harness",
    "HarnessRun",
    "Recorder",
    "Replayed",
    "ScriptedModel",
    "crash_at",
]

__getattr__ = exports(__name__, _HOMES, globals())
