"""What a process offers: the workflows of its agent, in each version that its code has."""

from __future__ import annotations

from collections.abc import Mapping

from perdure.engine.definition import WorkflowDefinition
from perdure.errors import SetupError


class Offer:
    """The (workflow, version) pairs that a process runs, as columns for SQL; `''` stands for no version.

    Raises `SetupError` when there is no workflow.
    """

    __slots__ = ("_definitions", "hashes", "names", "newest", "versions")

    def __init__(self, agent_name: str, workflows: Mapping[str, WorkflowDefinition]) -> None:
        if not workflows:
            raise SetupError(f"agent {agent_name} has no workflow: mark async def run(self, ctx, task) with @workflow")
        pairs = [(name, each) for name, newest in workflows.items() for each in (newest, *newest.older)]
        self._definitions = {(name, each.version or ""): each for name, each in pairs}
        self.names = [name for name, _ in pairs]
        self.versions = [each.version or "" for _, each in pairs]
        self.hashes = [each.source_hash for _, each in pairs]
        self.newest = [each is workflows[name] for name, each in pairs]

    def find(self, workflow: str, version: str | None) -> WorkflowDefinition:
        """The code of a claimed run."""
        return self._definitions[workflow, version or ""]
