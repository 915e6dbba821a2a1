"""The durable engine: workflows whose steps are journaled, so that they go on where another process left off."""

from perdure.workflow.context import ChildRun, Context
from perdure.workflow.definition import WorkflowDefinition, define_workflow, workflow
from perdure.workflow.retry import Retry
from perdure.workflow.steps import StepContext
from perdure.workflow.worker import Worker

__all__ = ["ChildRun", "Context", "Retry", "StepContext", "Worker", "WorkflowDefinition", "define_workflow", "workflow"]
