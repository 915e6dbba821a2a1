"""The HTTP door: an ASGI app that speaks the platform's requests for whoever comes with HTTP.

One implementation for the gateway's process (`services/gateway`) and for `AgentRunner.serve`. It holds no state: what
it answers comes over NATS from the services, or from Postgres; any number of replicas may run, and any may die.
"""
