"""The project and its dependencies, installed where any user can execute them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from support.peers import SYSTEM_PYTHON, cannot

ROOT = Path(__file__).parents[2]

_SCRIPT = """\
#!{python}
import sys

from smtpd_fork.cli import main

sys.exit(main())
"""


def install(folder: Path) -> Path:
    """Create a virtual environment of the system's Python in *folder*; return its interpreter.

    Its packages are copied from the environment that runs the tests, which is faster than an
    installation. Copies would not work with another version of Python.
    """
    if not SYSTEM_PYTHON.exists():
        cannot(f"{SYSTEM_PYTHON} is not installed")
    subprocess.run([SYSTEM_PYTHON, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / f"python{version}" / "site-packages"
    if packages.exists():
        for one in _at_run_time("smtpd-fork", set()):
            _copy(one, packages)
        shutil.copytree(ROOT / "smtpd_fork", packages / "smtpd_fork")
        script = folder / "bin/smtpd-fork"
        script.write_text(_SCRIPT.format(python=python))
        script.chmod(0o755)
    else:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
        subprocess.run([*pip, "install", "--quiet", ROOT], check=True, capture_output=True)
    return python


def _at_run_time(name: str, seen: set[str]) -> list[Distribution]:
    """Return the requirements of *name*, recursively, without extras."""
    found = []
    for text in distribution(name).requires or ():
        needed = Requirement(text)
        if (needed.marker is None or needed.marker.evaluate({"extra": ""})) and (
            needed.name not in seen
        ):
            seen.add(needed.name)
            found += [distribution(needed.name), *_at_run_time(needed.name, seen)]
    return found


def _copy(package: Distribution, target: Path) -> None:
    for file in package.files or ():
        if ".." not in file.parts:  # such a path is that of a script, which is not copied
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), place)
