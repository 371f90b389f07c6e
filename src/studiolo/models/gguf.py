"""The facts in the header of a GGUF file, read within bounds and without loading anything.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package reads the same, but
builds an array for each of the hundreds of thousands of tokens of a vocabulary: seconds, where stepping over
them takes a tenth of one (docs/decisions/gguf-header.md). The tests compare the two.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studiolo.errors import StudioloError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Real headers: some 50 keys, 2,000 tensors, 300,000 tokens, 20 MB.
_MOST_KEYS, _MOST_TENSORS, _MOST_ITEMS = 10_000, 100_000, 1 << 24
_LONGEST_HEADER, _LONGEST_STRING, _DEEPEST_ARRAY = 1 << 28, 1 << 24, 4

# `general.file_type`, as llama.h numbers it (llama_ftype).
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class Items:
    """Stands for an array, whose values are stepped over."""

    length: int


@dataclass(frozen=True)
class Header:
    """`values` are the metadata; `tensors` and `parameters` are counts."""

    version: int
    values: dict[str, Any]
    tensors: int
    parameters: int

    def of_architecture(self, key: str) -> Any:
        """The value of `key` under the name of the architecture, such as llama.context_length."""
        return self.values.get(f"{self.values.get('general.architecture')}.{key}")


def read_header(path: Path, *, arrays: bool = False) -> Header:
    """The header of a GGUF file, version 2 or 3, little-endian.

    Args:
        arrays: read them as lists, the vocabulary among them; else `Items` stands for each.

    Raises:
        StudioloError: no such file, no GGUF file, cut off, or beyond the bounds above.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, arrays).header()
    except OSError as error:
        raise StudioloError(
            f"cannot be read ({error.strerror})", where=path, remedy="Check the path."
        ) from error
    except ValueError as error:  # also what mmap says of an empty file
        raise StudioloError(
            f"not a whole GGUF file: {error}", where=path, remedy="Fetch or make it again."
        ) from error


class _Reader:
    """Walks through the bytes; every fault is a ValueError."""

    def __init__(self, data: mmap.mmap, arrays: bool) -> None:
        self.data, self.at, self.end = data, 0, min(len(data), _LONGEST_HEADER)
        self._array = self._read_array if arrays else self._skip_array

    def header(self) -> Header:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, and 2 and 3 are known (little-endian)")
        tensors = self._count(_MOST_TENSORS, "tensors")
        keys = self._count(_MOST_KEYS, "keys")
        values = {self._string(): self._value(self._number("I")) for _ in range(keys)}
        return Header(version, values, tensors, self._parameters(tensors, values))

    def _parameters(self, tensors: int, values: dict[str, Any]) -> int:
        parameters = last = 0
        for _ in range(tensors):
            self._string()
            shape = [self._number("Q") for _ in range(self._count(8, "dimensions", "I"))]
            parameters += math.prod(shape)
            self._number("I")  # the kind of its numbers
            last = max(last, self._number("Q"))
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError("its alignment is no positive number")
        start = -(-self.at // alignment) * alignment
        if tensors and start + last >= len(self.data):
            raise ValueError("it ends before its last tensor")
        return parameters

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY and depth < _DEEPEST_ARRAY:
            return self._array(depth)
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        raise ValueError(f"a value of unknown kind {kind}")

    def _read_array(self, depth: int) -> list[Any]:
        kind = self._number("I")
        length = self._count(_MOST_ITEMS, "items in an array")
        if kind in _SCALARS:
            code = f"<{length}{_SCALARS[kind]}"
            return list(struct.unpack(code, self._take(struct.calcsize(code))))
        return [self._value(kind, depth + 1) for _ in range(length)]

    def _skip_array(self, depth: int) -> Items:
        kind = self._number("I")
        length = self._count(_MOST_ITEMS, "items in an array")
        if kind in _SCALARS:
            self._step(length * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(length):
                self._step(self._count(_LONGEST_STRING, "bytes in a string"))
        else:
            for _ in range(length):
                self._value(kind, depth + 1)
        return Items(length)

    def _string(self) -> str:
        return self._take(self._count(_LONGEST_STRING, "bytes in a string")).decode("utf-8", "replace")

    def _count(self, most: int, what: str, code: str = "Q") -> int:
        count = int(self._number(code))
        if count > most:
            raise ValueError(f"{count} {what}, and at most {most} are allowed")
        return count

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(code)))[0]

    def _take(self, size: int) -> bytes:
        start = self.at
        self._step(size)
        return self.data[start : self.at]

    def _step(self, size: int) -> None:
        if size > self.end - self.at:
            raise ValueError("it ends within its header, or its header is too long")
        self.at += size
