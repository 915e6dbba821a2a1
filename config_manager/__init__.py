"""The ConfigManager: the one process that owns `agent_configurations` and tells agents of every change."""
