from __future__ import annotations

import enum
import typing
from dataclasses import dataclass
from typing import Annotated, Literal

import orjson
import pytest
from pydantic import BaseModel, Field

from perdure.agent.schema import ToolArgumentsError, parse_docstring
from perdure.agent.tools import Tool, as_tools, tool
from perdure.engine import Context, Retry, StepContext


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Address(BaseModel):
    street: str
    number: int = 1


@dataclass
class Point:
    x: float
    y: float


def properties(made: Tool) -> dict:
    return made.spec()["function"]["parameters"]["properties"]


def test_type_hints_and_docstring_become_the_schema():
    @tool
    async def order(item: str, count: int = 1, size: Size = Size.SMALL, note: str | None = None) -> str:
        """Order an item.

        It is sent at once.

        Args:
            item: what to order,
                by its name
            count (int): how many

        Returns:
            a receipt
        """
        return item

    function = order.spec()["function"]
    assert function["name"] == "order"
    assert function["description"] == "Order an item.\n\nIt is sent at once."
    assert function["parameters"]["required"] == ["item"]
    assert function["parameters"]["additionalProperties"] is False
    assert properties(order)["item"] == {"description": "what to order, by its name", "type": "string"}
    assert properties(order)["count"] == {"default": 1, "description": "how many", "type": "integer"}
    assert order.bind('{"item": "x", "size": "large"}') == {"item": "x", "count": 1, "size": Size.LARGE, "note": None}


def test_models_dataclasses_and_literals_come_back_typed():
    @tool
    def ship(
        to: Address, at: Point, how: Literal["air", "sea"], tags: list[str], most: Annotated[int, Field(le=3)]
    ) -> None:
        """Ship."""

    arguments = {"to": {"street": "s"}, "at": {"x": 1, "y": 2}, "how": "sea", "tags": ["a"], "most": 3}
    assert ship.bind(orjson.dumps(arguments).decode()) == {
        "to": Address(street="s"), "at": Point(1.0, 2.0), "how": "sea", "tags": ["a"], "most": 3,
    }  # fmt: skip
    assert "$defs" in ship.spec()["function"]["parameters"]


def test_context_and_step_are_injected_and_in_no_schema():
    @tool
    async def work(a: str, ctx: Context, maybe: Context | None = None) -> None:
        """Work."""

    @tool
    def plain(a: str, step: StepContext) -> None:
        """Work."""

    assert list(properties(work)) == list(properties(plain)) == ["a"]
    assert work.wants_context
    assert not plain.wants_context
    assert plain.injections(step="the step") == {"step": "the step"}
    with pytest.raises(ToolArgumentsError, match="ctx"):
        work.bind('{"a": "x", "ctx": 1}')


def test_a_context_needs_an_async_function_and_no_step_beside_it():
    async def both(ctx: Context, step: StepContext) -> None: ...
    def plain(ctx: Context) -> None: ...

    with pytest.raises(TypeError, match="tool 'both'"):
        tool(both)
    with pytest.raises(TypeError, match=r"tool 'plain'.*async"):
        tool(plain)


def test_a_context_that_only_type_checkers_import_is_injected_too():
    names: dict = {}
    source = "from __future__ import annotations\nasync def work(a: str, ctx: Context | None): ..."
    exec(source, names)
    made = tool(names["work"])
    assert list(properties(made)) == ["a"]
    assert made.signature.injected == {"ctx": "ctx"}


def test_an_optional_context_is_injected_too():
    @tool
    async def plain(a: str, ctx: typing.Optional[Context] = None) -> None:  # noqa: UP045
        """Work."""

    assert list(properties(plain)) == ["a"]


def test_a_parameter_may_be_called_like_a_method_of_pydantic():
    @tool
    def odd(schema: str, copy: int, model_config: str, _private: str = "p", json: str = "j") -> None:
        """Odd."""

    assert odd.bind('{"schema": "s", "copy": 1, "model_config": "m"}') == {
        "schema": "s", "copy": 1, "model_config": "m", "_private": "p", "json": "j",
    }  # fmt: skip


class NoSchema:
    pass


def bad_hint(stream: NoSchema) -> None: ...
def bad_nested(parts: list[NoSchema]) -> None: ...
def bad_callable(then: typing.Callable[[], int]) -> None: ...
def bad_name(what: Nowhere) -> None: ...  # noqa: F821
def no_hint(what) -> None: ...
def star(*what: int) -> None: ...
def stars(**what: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (bad_hint, "stream"),
        (bad_nested, "parts"),
        (bad_callable, "then"),
        (bad_name, "what"),
        (no_hint, "what"),
        (star, "what"),
        (stars, "what"),
    ],
)
def test_a_hint_without_a_schema_is_a_type_error_at_definition(function, parameter):
    with pytest.raises(TypeError, match=f"tool '{function.__name__}', parameter '{parameter}'"):
        tool(function)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("{broken", "not valid JSON"),
        ("[1]", "one JSON object"),
        ('"x"', "one JSON object"),
        ("{}", "item: Field required"),
        ('{"item": 1}', "item: Input should be a valid string"),
        ('{"item": "x", "more": 1}', "more: Extra inputs"),
    ],
)
def test_arguments_that_do_not_fit_are_told_in_the_models_words(said, why):
    @tool
    def order(item: str) -> None:
        """Order."""

    with pytest.raises(ToolArgumentsError, match=why) as told:
        order.bind(said)
    assert "field_0" not in str(told.value)


def test_no_arguments_at_all_are_an_empty_object():
    @tool
    def now() -> str:
        """Now."""
        return "now"

    assert now.bind("") == {}
    assert now() == "now"


def test_options_are_checked_where_they_are_written():
    with pytest.raises(TypeError, match="wake"):
        tool(wake=True)(star.__class__)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="timeout"):
        tool(timeout=0)(test_no_arguments_at_all_are_an_empty_object)
    with pytest.raises(TypeError, match="must match"):
        Tool(lambda: None)
    made = tool(background=True, wake=True, retry=Retry(2), name="other")(test_no_arguments_at_all_are_an_empty_object)
    assert (made.name, made.background, made.wake, made.retry) == ("other", True, True, Retry(2))


def test_plain_functions_become_tools_and_names_are_unique():
    def first() -> str:
        """One."""
        return "1"

    assert list(as_tools([first])) == ["first"]
    with pytest.raises(TypeError, match="two tools are called 'first'"):
        as_tools([first, Tool(first)])
    with pytest.raises(TypeError, match="not int"):
        as_tools([7])


def test_docstrings_in_both_styles_are_read():
    sphinx = "Say.\n\n:param a: the a\n:param str b: the b\n:returns: x"
    assert parse_docstring(sphinx) == ("Say.", {"a": "the a", "b": "the b"})
    assert parse_docstring(None) == ("", {})
