"""Alerts for real: a platform, a Prometheus, and the fault of each alert (`make alerts-test`)."""
