"""The header of a safetensors file: names, types and shapes of its tensors, without reading them.

The format: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from studiolo.errors import StudioloError

_LONGEST_HEADER = 1 << 26
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorFacts:
    """Type (as safetensors writes it: "F16") and shape of a tensor, and its length in bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Header:
    tensors: dict[str, TensorFacts]
    metadata: dict[str, str]


def read_header(file: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        StudioloError: the file is cut, damaged, a pointer of Git LFS, a web page, or something else.
    """
    refuse_lookalikes(file)
    try:
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(_LONGEST_HEADER, file.stat().st_size):
                raise ValueError("its header is too long")
            told = json.loads(opened.read(length))
        metadata = {str(key): str(value) for key, value in told.pop("__metadata__", {}).items()}
        tensors = {str(name): _facts(name, entry) for name, entry in told.items()}
        ends = [int(entry["data_offsets"][1]) for entry in told.values()]
        if 8 + length + max(ends, default=0) != file.stat().st_size:
            raise ValueError("its length is not what its header says")
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        struct.error,
    ) as error:
        raise StudioloError(
            f"not a whole safetensors file ({error})", where=file, remedy="Fetch or make it again."
        ) from error
    return Header(tensors, metadata)


def refuse_lookalikes(file: Path) -> None:
    """StudioloError for what is often found under the name of weights: nothing, a pointer, a web page."""
    with open(file, "rb") as opened:
        start = opened.read(512)
    if not start:
        raise StudioloError("the file is empty", where=file, remedy="Fetch it again.")
    if start.startswith(b"version https://git-lfs"):
        raise StudioloError(
            "a pointer of Git LFS, not the weights themselves",
            where=file,
            remedy="Fetch them: git lfs pull, or download the file from its page.",
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise StudioloError(
            "a web page, not weights: the download was answered with an error or a login",
            where=file,
            remedy="Download it again, logged in where that is asked for.",
        )


def _facts(name: str, entry: dict) -> TensorFacts:
    dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
    start, end = (int(n) for n in entry["data_offsets"])
    bits = _BITS.get(dtype)
    if start < 0 or any(n < 0 for n in shape) or (bits and math.prod(shape) * bits != 8 * (end - start)):
        raise ValueError(f"the length of {name!r} is not that of its shape")
    return TensorFacts(dtype, shape, end - start)
