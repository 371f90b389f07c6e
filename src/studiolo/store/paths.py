"""The folders Studiolo keeps: one home, and below it models, runs and caches."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """The data folder: `$STUDIOLO_HOME`, or `studiolo` in the platform's folder for user data."""
    if chosen := os.environ.get("STUDIOLO_HOME"):
        return Path(chosen).expanduser().absolute()
    return _platform_data_dir() / "studiolo"


def models_dir() -> Path:
    """Where the registry keeps its records (created when missing)."""
    return _made(home() / "models")


def weights_dir() -> Path:
    """Where weights of language models lie, one folder a name (created when missing)."""
    return _made(models_dir() / "weights")


def runs_dir() -> Path:
    """Where runs go that were given no folder of their own (created when missing)."""
    return _made(home() / "runs")


def cache_dir(kind: str) -> Path:
    """Where results that can be made again are kept, one folder a kind (created when missing)."""
    return _made(home() / "cache" / kind)


def _platform_data_dir() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    xdg = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    return Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".local" / "share"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
