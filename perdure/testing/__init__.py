"""What authors test their agents with, and the fakes that stand for what a test cannot have.

With `pip install perdure` pytest has the fixture `harness` (see `perdure.testing.plugin`).
"""

from perdure.testing.clock import FakeClock
from perdure.testing.crash import crash_at
from perdure.testing.harness import Harness, HarnessRun
from perdure.testing.models import Call, ScriptedModel

__all__ = ["Call", "FakeClock", "Harness", "HarnessRun", "ScriptedModel", "crash_at"]
