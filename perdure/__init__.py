"""Perdure: AI agents as microservices, whose work outlives the process that does it."""
