"""The walls of the house stand: no room imports upwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_walls_stand():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
