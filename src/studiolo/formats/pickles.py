"""Old weights (.ckpt, .pt, .bin): a pickle is a program, and this reader runs none of it.

PyTorch's `weights_only` reader builds tensors, containers and numbers alone. What checkpoints of Lightning
hold beside them (callbacks, settings, NumPy scalars) is taken for inert stand-ins, whose real classes are
neither imported nor called. Anything else is refused by name.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from studiolo.errors import StudioloError
from studiolo.models.header import refuse_lookalikes

# Whose objects are replaced by stand-ins. None of them carries weights.
_HARMLESS = (
    "pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "numpy.core.", "numpy._core.",
    "numpy.dtype", "numpy.ndarray", "argparse.Namespace", "ldm.", "transformers.", "diffusers.",
    "torch.nn.modules.container.ParameterDict", "modules.textual_inversion.", "typing.", "pathlib.",
    "collections.defaultdict", "datetime.", "fsspec.",
)  # fmt: skip
_MOST_CLASSES = 200
# How PyTorch tells of something that it would have to import: torch/_weights_only_unpickler.py.
_GLOBAL = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL|Unsupported class|GLOBAL) ([\w.]+)")


class Inert:
    """Stands where an object of some class was: it keeps the state that it is given, and does nothing."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_pickle(file: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file of `torch.save`, by name: its "state_dict" where it has one.

    Raises:
        StudioloError: the file is no such file, is damaged, or wants to call something.
    """
    told = read_object(file)
    if isinstance(told, dict):
        inner = told.get("state_dict", told)
        weights = inner if isinstance(inner, dict) else told
        found = {
            name: tensor.detach()
            for name, tensor in weights.items()
            if isinstance(name, str) and isinstance(tensor, torch.Tensor)
        }
        if found:
            return found
    raise StudioloError("no named tensors in this file", where=file, remedy="Give a file of weights.")


def read_object(file: Path) -> Any:
    """What `torch.save` wrote, objects of other libraries as `Inert`; no code of the file is run."""
    refuse_lookalikes(file)
    is_zip = zipfile.is_zipfile(file)
    if is_zip:
        _check_archive(file)
    stand_ins: dict[str, type] = {}
    while True:
        try:
            allowed: list[Any] = [(kind, name) for name, kind in stand_ins.items()]
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(allowed):
                return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError as error:
            name = _wanted(error, file)
            if name in stand_ins or len(stand_ins) >= _MOST_CLASSES:
                raise _damaged(file, error) from error
            stand_ins[name] = type(name.rpartition(".")[2], (Inert,), {})
        except Exception as error:  # a damaged pickle can fail in any way at all, and in no other harmful one
            raise _damaged(file, error) from error


def _wanted(error: pickle.UnpicklingError, file: Path) -> str:
    """The class that reading stopped at, if it is one that a stand-in may take the place of."""
    found = _GLOBAL.search(str(error))
    name = found.group(1) if found else None
    if name and name.startswith(_HARMLESS):
        return name
    if name is None:
        raise _damaged(file, error) from error
    raise StudioloError(
        f"this file would call {name} when it is read as Python reads it: nothing of it was run",
        where=file,
        remedy="Do not trust it. Look for the same weights as .safetensors.",
    ) from error


def _check_archive(file: Path) -> None:
    """Tensors are stored, not packed: an archive that would grow is made to fill the memory."""
    try:
        with zipfile.ZipFile(file) as archive:
            grown = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if grown > file.stat().st_size:
        raise StudioloError(
            f"this archive would grow to {grown} bytes, which weights do not",
            where=file,
            remedy="Do not trust it.",
        )


def _damaged(file: Path, error: Exception) -> StudioloError:
    told = str(error).partition("WeightsUnpickler error: ")[2] or str(error)  # without the advice before it
    told = " ".join(told.partition("Check the documentation")[0].split())[:160]
    return StudioloError(
        f"not a whole file of weights ({type(error).__name__}: {told})",
        where=file,
        remedy="Fetch it again; or it is none of torch.save.",
    )
