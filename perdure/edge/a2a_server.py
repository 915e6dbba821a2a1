"""What answers over A2A. Imported by the first request for it alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar
from uuid import uuid4

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler, validate_request_params
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    ListTaskPushNotificationConfigsResponse,
    Task,
    TaskPushNotificationConfig,
)
from a2a.utils import errors as a2a_errors
from starlette.requests import Request
from starlette.responses import Response

from perdure.agent.registry import alive
from perdure.client.handle import RunHandle
from perdure.client.types import STOPPED, TERMINAL, TERMINAL_EVENTS
from perdure.edge import a2a_push
from perdure.edge.a2a_tasks import given, named_agent, task_of, told, what_to_do
from perdure.edge.callers import Caller
from perdure.edge.door import Door
from perdure.edge.problems import unexpected
from perdure.edge.progress import progress
from perdure.edge.replies import run_id_of
from perdure.errors import ApiError, InvalidRequest, NotFound, Unauthorized, Unavailable
from perdure.subjects import agent_name

PLATFORM = 'Agents, each of them a skill here. A message names the one it is for in its metadata: {"agent": "NAME"}.'
CANCEL_PATIENCE = 5.0  # seconds in which a cancelled run tidies up, as far as this answer waits for it

T = TypeVar("T")


def card(agent: str, description: str, url: str, version: str) -> dict[str, Any]:
    """An agent's card, for clients of 1.0 and of 0.3."""
    skill = AgentSkill(id="run", name=agent, description=description, tags=["agent"])
    return _card(agent, description, url, version, [skill])


def platform_card(agents: Mapping[str, str], url: str, version: str) -> dict[str, Any]:
    """The card of all these agents together, by name with their descriptions: each is a skill."""
    skills = [AgentSkill(id=name, name=name, description=said, tags=["agent"]) for name, said in agents.items()]
    return _card("perdure", PLATFORM, url, version, skills)


def _card(name: str, description: str, url: str, version: str, skills: list[AgentSkill]) -> dict[str, Any]:
    made = AgentCard(
        name=name,
        description=description,
        version=version,
        supported_interfaces=[
            AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0"),
            AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="0.3"),
        ],
        capabilities=AgentCapabilities(streaming=True, push_notifications=True),
        default_input_modes=["text/plain", "application/json"],
        default_output_modes=["text/plain", "application/json"],
        skills=skills,
    )
    said: dict[str, Any] = agent_card_to_dict(made)
    return said


def dispatcher(door: Door) -> JsonRpcDispatcher:
    """Reads requests of both versions."""
    return JsonRpcDispatcher(_Runs(door), context_builder=_Contexts(), enable_v0_3_compat=True)


async def answer(made: JsonRpcDispatcher, request: Request) -> Response:
    """The answer to one request."""
    return await made.handle_requests(request)


class _Contexts(ServerCallContextBuilder):
    def build(self, request: Request) -> ServerCallContext:
        state = {"headers": dict(request.headers), "caller": request.state.caller, "agent": request.state.agent}
        return ServerCallContext(state=state)


def _form(context: ServerCallContext) -> str:
    """The version that the client speaks: those of 0.3 send no header."""
    return "1.0" if context.state["headers"].get("a2a-version", "").startswith("1.") else "0.3"


def _error(error: Exception) -> a2a_errors.A2AError:
    """The same error in the protocol's words, with our code beside it."""
    said = error if isinstance(error, ApiError) else unexpected(error)
    kind: type[a2a_errors.A2AError] = a2a_errors.InternalError
    if isinstance(said, NotFound):
        kind = a2a_errors.TaskNotFoundError
    elif said.http_status < 429:
        kind = a2a_errors.InvalidParamsError if isinstance(said, InvalidRequest) else a2a_errors.InvalidRequestError
    return kind(message=f"{said.code}: {said.message}", data={"code": said.code})


def _unary(method: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., Coroutine[Any, Any, T]]:
    async def call(self: _Runs, params: Any, context: ServerCallContext) -> T:
        try:
            return await method(self, params, context)
        except a2a_errors.A2AError:
            raise
        except Exception as error:  # noqa: BLE001 -- the library would tell the caller what it says
            raise _error(error) from None

    return validate_request_params(call)


def _stream(method: Callable[..., AsyncGenerator[Any]]) -> Callable[..., AsyncGenerator[Any]]:
    async def call(self: _Runs, params: Any, context: ServerCallContext) -> AsyncGenerator[Any]:
        try:
            with self.door.load.held():
                async with aclosing(method(self, params, context)) as pieces:
                    async for piece in pieces:
                        yield piece
        except a2a_errors.A2AError:
            raise
        except Exception as error:  # noqa: BLE001 -- the library would tell the caller what it says
            raise _error(error) from None

    return validate_request_params(call)


def _refuse(error: type[a2a_errors.A2AError]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def call(_self: _Runs, _params: Any, _context: ServerCallContext) -> Any:
        raise error

    return call


class _Runs(RequestHandler):
    """Runs as tasks."""

    def __init__(self, door: Door) -> None:
        self.door = door

    @_unary
    async def on_get_task(self, params: Any, context: ServerCallContext) -> Task:
        return task_of(await self._whole(params.id, context))

    @_unary
    async def on_message_send(self, params: Any, context: ServerCallContext) -> Task:
        run = await self._started(params, context)
        if params.configuration.return_immediately:
            return task_of(await run.details(steps=False))
        with self.door.load.held():
            async for _ in self._until_stopped(run, context):
                pass
        return task_of(await run.details(steps=False))

    @_stream
    async def on_message_send_stream(self, params: Any, context: ServerCallContext) -> AsyncGenerator[Any]:
        run = await self._started(params, context)
        async for piece in self._told(run, context):
            yield piece

    @_stream
    async def on_subscribe_to_task(self, params: Any, context: ServerCallContext) -> AsyncGenerator[Any]:
        known = await self._whole(params.id, context)
        if known["status"] in TERMINAL:
            raise a2a_errors.UnsupportedOperationError(message="this task has ended; tasks/get has its result")
        async for piece in self._told(self.door.client.run(known["run_id"]), context):
            yield piece

    @_unary
    async def on_cancel_task(self, params: Any, context: ServerCallContext) -> Task:
        caller: Caller = context.state["caller"]
        caller.need("operator")
        known = await self._whole(params.id, context)
        if known["status"] in TERMINAL:
            raise a2a_errors.TaskNotCancelableError
        run = self.door.client.run(known["run_id"])
        await run.cancel(f"cancelled by {caller.name}")
        try:
            return task_of(await run.ended(CANCEL_PATIENCE))
        except TimeoutError:
            return task_of(await run.details(steps=False))

    @_unary
    async def on_create_task_push_notification_config(
        self, params: Any, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        context.state["caller"].need("operator")
        run = await self._whole(params.task_id, context)
        return await a2a_push.keep(self.door, run["run_id"], params, _form(context))

    @_unary
    async def on_get_task_push_notification_config(
        self, params: Any, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        run = await self._whole(params.task_id, context)
        found = await a2a_push.of_run(self.door, run["run_id"], params.id or run["run_id"])
        if not found:
            raise NotFound(f"task {run['run_id']} has no push notification configuration {params.id!r}")
        return found[0]

    @_unary
    async def on_list_task_push_notification_configs(
        self, params: Any, context: ServerCallContext
    ) -> ListTaskPushNotificationConfigsResponse:
        run = await self._whole(params.task_id, context)
        return ListTaskPushNotificationConfigsResponse(configs=await a2a_push.of_run(self.door, run["run_id"]))

    @_unary
    async def on_delete_task_push_notification_config(self, params: Any, context: ServerCallContext) -> None:
        context.state["caller"].need("operator")
        run = await self._whole(params.task_id, context)
        await a2a_push.drop(self.door, run["run_id"], params.id or run["run_id"])

    async def _started(self, params: Any, context: ServerCallContext) -> RunHandle:
        """The run of a message: the same message again is the same run."""
        caller: Caller = context.state["caller"]
        caller.need("operator")
        message = params.message
        agent: str = context.state["agent"] or await self._named(params, caller)
        run_id = caller.own(run_id_of(message.message_id or uuid4().hex, None, agent, "a2a") or "")
        if not await alive(self.door.pool, [agent]):
            await self._known(caller, run_id, agent)
        push = None
        if params.configuration.HasField("task_push_notification_config"):
            push = params.configuration.task_push_notification_config
            a2a_push.checked(self.door, push)  # before anything is started
        if message.task_id:
            await self._whole(message.task_id, context)
            raise a2a_errors.UnsupportedOperationError(
                message="a task takes no second message; go on with its contextId and without taskId"
            )
        session = caller.own(message.context_id, field="contextId") if message.context_id else run_id
        run = await self.door.client.start(agent, what_to_do(message), run_id=run_id, session_id=session)
        if push is not None:
            await a2a_push.keep(self.door, run.run_id, push, _form(context))
        return run

    async def _named(self, params: Any, caller: Caller) -> str:
        """The agent that a message to the platform is for. Raises `InvalidRequest`, `Forbidden`."""
        said = named_agent(params)
        if said is None:
            raise InvalidRequest(f"field 'metadata.agent': name the agent; here are: {await self._here(caller)}")
        try:
            return self.door.agent(caller, agent_name(said))
        except ValueError as error:
            raise InvalidRequest(f"field 'metadata.agent': {error}") from None

    async def _known(self, caller: Caller, run_id: str, agent: str) -> None:
        """Whether a message was taken before. Raises `Unavailable` for a new one, as nobody is here to see to it."""
        try:
            await self.door.find(caller, run_id)
        except NotFound:
            here = await self._here(caller)
            raise Unavailable(f"no process of an agent {agent!r} is up; here are: {here}") from None

    async def _here(self, caller: Caller) -> str:
        return ", ".join(each["agent"] for each in await self.door.agents(caller)) or "none"

    async def _whole(self, task_id: str, context: ServerCallContext) -> dict[str, Any]:
        """A run that the caller may see, of this agent where one is asked. Raises `NotFound`."""
        try:
            found = await self.door.find(context.state["caller"], task_id)
        except InvalidRequest:
            raise NotFound(f"there is no run {task_id!r}") from None
        if context.state["agent"] not in (None, found["agent"]):
            raise NotFound(f"there is no run {task_id!r}")
        return await self.door.client.run(found["run_id"]).details(steps=False)

    async def _told(self, run: RunHandle, context: ServerCallContext) -> AsyncGenerator[Any]:
        """The task, what happens to it, its output and its end."""
        known = await run.details(steps=False)
        yield task_of(known)
        if known["status"] not in STOPPED:
            working = {**known, "status": "running"}
            async with aclosing(self._until_stopped(run, context)) as events:
                async for event in events:
                    if event["type"] == "run.started":
                        yield told(working)
                    elif (text := progress(event)) is not None:
                        yield told(working, text)
            known = await run.details(steps=False)
            if known["status"] == "completed":
                yield given(known)
            yield told(known)

    async def _until_stopped(self, run: RunHandle, context: ServerCallContext) -> AsyncGenerator[Any]:
        """The events of a run until it has ended or cannot go on by itself. Raises `Unavailable`, `Unauthorized`."""
        ending = asyncio.ensure_future(run.ended())
        stopping = asyncio.ensure_future(self.door.stopping.wait())
        following: asyncio.Future[Any] | None = None
        events = run.events()
        try:
            while True:
                following = following or asyncio.ensure_future(anext(events))
                beat = self.door.settings.gateway_heartbeat
                done, _ = await asyncio.wait(
                    {following, ending, stopping}, timeout=beat, return_when=asyncio.FIRST_COMPLETED
                )
                if following in done:
                    event = following.result()
                    following = None
                    yield event
                    if event["type"] in TERMINAL_EVENTS:
                        return
                elif ending in done:
                    ending.result()
                    return
                elif stopping in done:
                    raise Unavailable("this gateway is stopping; the task goes on: subscribe to it again")
                elif not done and not await self.door.gate.still(context.state["caller"]):
                    raise Unauthorized("this key is expired or revoked")
        except StopAsyncIteration:
            return
        finally:
            waiting = [each for each in (ending, stopping, following) if each is not None]
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await events.aclose()

    # what is not offered, as the card says
    on_list_tasks = _refuse(a2a_errors.UnsupportedOperationError)
    on_get_extended_agent_card = _refuse(a2a_errors.ExtendedAgentCardNotConfiguredError)
