"""What the warm Python runs is a process like any other."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest


def told(python: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *arguments], capture_output=True, text=True, check=False, **options)


SHOWN = """
import os, sys
print(sys.argv, os.getcwd(), os.environ.get("WORD"), sys.path[0], sys.stdin.read(), __name__)
print("an error", file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize("way", ["code", "module", "file"])
def test_it_is_what_python_makes_of_the_same_command(warm_python, tmp_path, way):
    (tmp_path / "shown.py").write_text(SHOWN)
    command = {"code": ["-c", SHOWN], "module": ["-m", "shown"], "file": ["shown.py"]}[way]
    options = {"cwd": tmp_path, "env": {**os.environ, "WORD": "süß"}, "input": "said"}
    warm, cold = (told(python, *command, "a", "b c", **options) for python in (warm_python, sys.executable))
    assert (warm.returncode, warm.stdout, warm.stderr) == (7, cold.stdout, cold.stderr)


def test_code_from_standard_input_and_a_fault(warm_python):
    done = told(warm_python, "-", "x", input="import sys; print(sys.argv); 1 / 0")
    assert done.returncode == 1
    assert done.stdout == "['-', 'x']\n"
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_it_has_imported_what_takes_long_and_other_options_are_left_to_python(warm_python):
    assert told(warm_python, "-c", "import sys; print('torch' in sys.modules)").stdout == "True\n"
    assert told(warm_python, "--version").stdout == told(sys.executable, "--version").stdout


def test_what_it_starts_is_warm_too(warm_python):
    inner = "import sys; print('torch' in sys.modules)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    assert told(warm_python, "-c", outer).stdout == "True\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_it(warm_python, signum):
    # Blocked and waited for: one that came between a print and a pause would be waited for for ever.
    code = f"import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [{int(signum)}])"
    code += f"; print(flush=True); sys.exit(signal.sigwait([{int(signum)}]))"
    process = subprocess.Popen([warm_python, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signum)
    assert process.wait() == signum
    process.stdout.close()


def test_it_ends_by_a_signal_as_it_would(warm_python):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert told(warm_python, "-c", code).returncode == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_it_is_killed_with_who_stands_for_it(warm_python):
    code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    process = subprocess.Popen([warm_python, "-c", code], stdout=subprocess.PIPE)
    ended = os.pidfd_open(int(process.stdout.readline()))
    process.kill()
    assert select.select([ended], [], [], 60)[0] == [ended]
    os.close(ended)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
