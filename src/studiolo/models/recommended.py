"""How weights want their tokens drawn, where who made them says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from studiolo.errors import StudioloError
from studiolo.models import gguf
from studiolo.models.facts import Value

# As GGUF calls them: https://github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py, `general.sampling`.
_OF_GGUF = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k"}


class Recommended(Value):
    """Settings for what a request leaves open; None: nothing is recommended."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)


def recommended(path: Path) -> Recommended:
    """What a .gguf file (`general.sampling.*`) or a folder (`generation_config.json`) says of it.

    Raises:
        StudioloError: it cannot be read, or recommends what cannot be.
    """
    if path.is_dir():
        file = path / "generation_config.json"
        return _checked(_of_folder(file), file) if file.is_file() else Recommended()
    values = gguf.read_header(path).values
    return _checked({ours: values.get(f"general.sampling.{name}") for ours, name in _OF_GGUF.items()}, path)


def _of_folder(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudioloError(f"not readable as JSON ({error})", where=file, remedy="Mend it.") from error
    return {name: config.get(name) for name in _OF_GGUF} if isinstance(config, dict) else {}


def _checked(values: Mapping[str, Any], where: Path) -> Recommended:
    try:
        return Recommended.model_validate(values)
    except ValidationError as error:
        raise StudioloError(
            f"settings for sampling that cannot be: {values}", where=where, remedy="Mend them in the file."
        ) from error
