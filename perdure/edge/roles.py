"""The caller as a parameter of a route; its type says which role the route needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from perdure.edge.callers import Caller

# What is depended on is a coroutine: what is not, FastAPI runs in a thread.


def caller_of(request: Request) -> Caller:
    """The caller that the guard has let in."""
    caller = request.scope["state"]["caller"]
    assert isinstance(caller, Caller)  # noqa: S101 -- set by the guard before any route
    return caller


async def _viewer(request: Request) -> Caller:
    return caller_of(request)


async def _operator(request: Request) -> Caller:
    caller = caller_of(request)
    caller.need("operator")
    return caller


async def _admin(request: Request) -> Caller:
    caller = caller_of(request)
    caller.need("admin")
    return caller


Viewer = Annotated[Caller, Depends(_viewer)]
Operator = Annotated[Caller, Depends(_operator)]
Admin = Annotated[Caller, Depends(_admin)]
