"""Writes docs/recipe.md from the descriptions in studiolo.dreambooth.recipe: `make docs`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from studiolo.dreambooth.recipe import Recipe
from studiolo.store.files import atomic_path

PAGE = Path(__file__).parent.parent / "docs" / "recipe.md"

HEAD = """\
<!-- Written by scripts/recipe_page.py (`make docs`) from the code: change the descriptions there. -->

# The recipe

A recipe holds every setting of a training. Give it as YAML (`studiolo train ... --recipe FILE`), setting by
setting (`--set steps=200 --set class_images.count=32`), or in Python (`studiolo.train(..., steps=200)`).
What you leave out keeps its default. The resolved recipe lies in the run folder as `recipe.yaml`, and
training by that file repeats the run. `studiolo train --defaults` prints all of this as a YAML file.

A wrong key or value is refused before any work begins, with the nearest right key or what was expected.
"""

BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


def page() -> str:
    """The whole page: one table for the settings, then one for each group of them."""
    schema = Recipe.model_json_schema()
    parts = [HEAD, _table(Recipe, schema, schema["$defs"])]
    for name, group in _groups(Recipe).items():
        parts.append(f"## {name}\n\n{inspect.getdoc(group)}\n")
        parts.append(_table(group, schema["$defs"][group.__name__], schema["$defs"], f"{name}."))
    return "\n".join(parts)


def _groups(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    kinds = {name: field.annotation for name, field in model.model_fields.items()}
    return {
        name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def _table(model: type[BaseModel], schema: dict[str, Any], shared: dict[str, Any], prefix: str = "") -> str:
    rows = ["| setting | values | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name in _groups(model):
            rows.append(f"| `{prefix}{name}` | a group, see [below](#{name}) | | {field.description} |")
            continue
        default = str(model.model_construct().model_dump_json(include={name})).split(":", 1)[1][:-1]
        values = _values(schema["properties"][name], shared).replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {values} | `{default}` | {field.description} |")
    return "\n".join(rows) + "\n"


def _values(schema: dict[str, Any], shared: dict[str, Any]) -> str:
    """What a value may be, in words: "integer ≥ 1, ≤ 256"."""
    if "$ref" in schema:
        return _values(shared[schema["$ref"].rsplit("/", 1)[1]], shared)
    if "anyOf" in schema:
        return " or ".join(_values(option, shared) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_values(schema['items'], shared)}"
    bounds = [text.format(_number(schema[key])) for key, text in BOUNDS.items() if key in schema]
    return f"{schema['type']} {', '.join(bounds)}".strip()


def _number(value: float) -> str:
    return "2⁶³" if value == 2**63 else f"{value:,}" if isinstance(value, int) else f"{value:g}"


if __name__ == "__main__":
    with atomic_path(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")
