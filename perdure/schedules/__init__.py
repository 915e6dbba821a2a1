"""Schedules: their expressions, those that an agent's code declares, and how their moments become runs."""
