"""The durable engine: workflows whose steps are journaled, so that they go on where another process left off."""

from perdure.engine.context import Context
from perdure.engine.context_children import ChildRun
from perdure.engine.definition import WorkflowDefinition, define_workflow, workflow
from perdure.engine.retry import Retry
from perdure.engine.step_functions import step
from perdure.engine.steps import StepContext
from perdure.engine.worker import Worker

__all__ = [
    "ChildRun",
    "Context",
    "Retry",
    "StepContext",
    "Worker",
    "WorkflowDefinition",
    "define_workflow",
    "step",
    "workflow",
]
