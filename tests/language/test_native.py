"""The libraries are loaded so that their threads soon sleep while they wait. Asked of libgomp itself."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

_LOAD = """
import os
from studiolo.language.engines.native import xllamacpp
assert xllamacpp().Server
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the libraries for other systems are not libgomp")
@pytest.mark.parametrize(
    ("said", "left", "known"),
    [
        ({}, "None None", "GOMP_SPINCOUNT = '300'"),
        ({"OMP_WAIT_POLICY": "active"}, "active None", "ACTIVE"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7", "GOMP_SPINCOUNT = '7'"),
    ],
)
def test_threads_soon_sleep_unless_the_user_says_otherwise(said, left, known):
    done = run(said, "-c", _LOAD)
    assert done.stdout.strip() == left
    assert known in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the libraries for other systems are not libgomp")
@pytest.mark.parametrize(
    ("command", "said", "known"),
    [
        ("train nothing --class fox --name x", {}, "GOMP_SPINCOUNT = '300000'"),
        ("generate 'a fox' --steps 0", {}, "GOMP_SPINCOUNT = '300'"),
        ("generate 'a fox' --steps 0", {"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT = '7'"),
        ("ask 'a fox' --model nothing", {}, "GOMP_SPINCOUNT = '300'"),
        ("ask 'a fox' --model nothing", {"OMP_WAIT_POLICY": "active"}, "OMP_WAIT_POLICY = 'ACTIVE'"),
    ],
)
def test_those_of_torch_too_where_the_command_line_speaks_or_draws(command, said, known):
    code = "import atexit; atexit.register(__import__, 'torch'); from studiolo.cli.main import main; main()"
    done = run(said, "-c", code, *shlex.split(command))
    assert "Error: " in done.stderr
    assert known in done.stderr


def run(said, *command):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    env = own | said | {"OMP_DISPLAY_ENV": "verbose"}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)
