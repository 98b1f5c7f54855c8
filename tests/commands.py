"""How tests start commands in processes of their own, and what they ask of an error line."""

from __future__ import annotations

import site
import subprocess
import sys
from pathlib import Path
from typing import Any


def one_line(text: str) -> str:
    """The error, which is nothing but one line."""
    assert text.startswith(("error: ", "interrupted: ", "terminated: "))
    assert text.count("\n") == 1
    return text


def refused(answer: tuple[int, str, str], says: str) -> None:
    """That a command ended with exit code 2 and one line that ``says`` this, and printed nothing else."""
    code, out, err = answer
    assert (code, out) == (2, "")
    assert one_line(err).startswith("error: ")
    assert says in err


def run_from_a_clone(script: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script of a clone without installation: -S with the packages' folder on the path, so that kdstream's own
    (editable) installation is not seen."""
    packages = site.getsitepackages()[0]
    code = f"import sys, runpy; sys.path[0] = {packages!r}; sys.argv[0] = {str(script)!r}; "
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def modules_that_help_loads(main: str, *arguments: str) -> tuple[str, set[str]]:
    """What ``main`` (of a module, by dotted path) prints for these arguments with ``--help``, in a process of its own,
    and which of the heavy libraries it has loaded for that."""
    code = (
        f"import sys\nfrom {main} import main\ntry:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "print(code or 0, *({'torch', 'torchvision', 'kornia', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments, "--help"], capture_output=True, text=True)
    assert done.stdout, done.stderr
    *text, last = done.stdout.splitlines(keepends=True)
    code, *loaded = last.split()
    assert code == "0"
    return "".join(text), set(loaded)
