"""Python functions as tools."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel

from studiolo.language.conversation import Call
from studiolo.language.errors import InvalidRequestError
from studiolo.language.functions import by_name, called, declared


class Place(BaseModel):
    name: str
    height: float = 0.0


def weather(place: Place, unit: Literal["C", "F"] = "C", days: list[int] | None = None) -> dict[str, Any]:
    """What the weather will be.

    Not for the model.
    """
    return {"place": place.name, "unit": unit, "days": days or []}


async def double(x: int) -> int:
    """Twice."""
    return 2 * x


def broken(x: int) -> int:
    """Fails."""
    raise RuntimeError("no more ink")


def result(name: str, **arguments: Any) -> Any:
    call = Call(name=name, arguments=arguments, id="1")
    return asyncio.run(called(call, by_name([weather, double, broken]))).result


def test_a_declaration_is_a_schema_that_takes_right_arguments_only() -> None:
    tool = declared(weather)
    assert (tool.name, tool.description) == ("weather", "What the weather will be.")
    check = jsonschema.Draft202012Validator(tool.parameters)
    assert check.is_valid({"place": {"name": "Rome"}, "unit": "F", "days": [1]})
    assert not check.is_valid({"unit": "F"})
    assert not check.is_valid({"place": {"name": "Rome"}, "unit": "K"})


def test_arguments_become_what_the_function_expects() -> None:
    assert result("weather", place={"name": "Rome"}, days=[1, 2]) == {
        "place": "Rome",
        "unit": "C",
        "days": [1, 2],
    }
    assert result("double", x=4) == 8


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("weather", {"place": 3}, "wrong arguments"),
        ("double", {"x": 1, "y": 2}, "wrong arguments"),
        ("broken", {"x": 1}, "no more ink"),
        ("missing", {}, "no function missing"),
    ],
)
def test_what_goes_wrong_is_told_to_the_model(name: str, arguments: dict[str, Any], told: str) -> None:
    assert told in result(name, **arguments)["error"]


def test_a_parameter_without_a_type_is_named() -> None:
    def vague(x):  # type: ignore[no-untyped-def]
        return x

    with pytest.raises(InvalidRequestError, match="x has no type"):
        declared(vague)
