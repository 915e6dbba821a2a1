"""The composition of an agent's process."""
