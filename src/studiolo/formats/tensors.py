"""Files of named tensors: read lazily, written one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from studiolo.errors import StudioloError
from studiolo.formats.pickles import read_pickle
from studiolo.models.header import read_header
from studiolo.store.files import atomic_path

Tensors = Mapping[str, torch.Tensor]
OnProgress = Callable[[str, int, int | None], None]
"""Called with a file's name, its bytes that are done and its length."""

SAFETENSORS = ".safetensors"
_NAMES = {  # in the library's order
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3", torch.int16: "I16", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip


def read_tensors(file: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a .ckpt, .pt or .bin file, in which no code is run.

    They are mapped from the file, and so cost memory only as they are used.

    Raises:
        StudioloError: there is no such file, or it is damaged, not weights, or wants to run code.
    """
    file = Path(file)
    if not file.is_file():
        raise StudioloError("no such file", where=file, remedy="Check the path.")
    if file.suffix.lower() != SAFETENSORS:
        return read_pickle(file)
    read_header(file)  # tells what is wrong better than the library does
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise StudioloError(
            f"not a whole safetensors file ({error})", where=file, remedy="Fetch or make it again."
        ) from error


def read_metadata(file: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; {} for a pickle, which has none."""
    return read_header(Path(file)).metadata if Path(file).suffix.lower() == SAFETENSORS else {}


def write_tensors(
    file: str | Path,
    tensors: Tensors,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Writes a safetensors file (https://huggingface.co/docs/safetensors, "Format"); returns its path.

    One tensor after the other is cast and written, so that no second copy of the weights is in memory, and
    progress can be told. The bytes are those that `safetensors.torch.save_file` writes.

    Args:
        dtype: of the floats in the file; None keeps each as it is. Integers stay what they are.
    """
    file = Path(file)
    stored = {name: _stored(tensor.dtype, dtype) for name, tensor in tensors.items()}
    order = list(_NAMES)
    # As the library has them: wide numbers first, so that all are aligned.
    names = sorted(tensors, key=lambda name: (-order.index(stored[name]), name))
    head = _head(names, tensors, stored, metadata or {"format": "pt"})
    total = len(head) + sum(tensors[name].numel() * stored[name].itemsize for name in names)
    with atomic_path(file) as temporary, open(temporary, "wb") as opened:
        opened.write(head)
        for name in names:
            opened.write(_bytes(tensors[name].to(stored[name])))
            if on_progress:
                on_progress(file.name, opened.tell(), total)
    return file


def float_types(tensors: Tensors) -> set[torch.dtype]:
    """The float types among the tensors."""
    return {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}


def _stored(own: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    dtype = wanted if wanted is not None and own.is_floating_point else own
    if dtype not in _NAMES:
        raise StudioloError(
            f"tensors of {dtype} cannot be written", remedy="Choose a dtype: --dtype float32."
        )
    return dtype


def _head(
    names: list[str], tensors: Tensors, stored: dict[str, torch.dtype], metadata: Mapping[str, str]
) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    for name, (start, end) in zip(names, _places(names, tensors, stored), strict=True):
        entries[name] = {
            "dtype": _NAMES[stored[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _places(names: list[str], tensors: Tensors, stored: dict[str, torch.dtype]) -> Iterator[tuple[int, int]]:
    start = 0
    for name in names:
        end = start + tensors[name].numel() * stored[name].itemsize
        yield start, end
        start = end


def _bytes(tensor: torch.Tensor) -> Any:
    """The tensor's bytes, as a buffer."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
