"""Peers at workload A, each as its own documentation says, on the Postgres that the engine is measured on."""
