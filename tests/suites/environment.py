"""Other projects from PyPI, installed in a separate environment, with their unpacked sources.

The environment is created once, and kept in the cache directory until the list changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

PINNED = (
    "aiosmtplib==5.1.3",
    "mailman==3.3.10",
    "mailrise==1.4.0",
    "pytest-localserver==0.10.0.post0",
    "smtpdfix==0.5.3",
)
"""Projects with tests in their source distribution."""

TOOLS = (
    "aiosmtpd==1.4.6",  # A project with its tests in the package.
    *("pytest==9.2.0", "pytest-asyncio==1.5.0", "pytest-timeout==2.4.0"),
    *("pytest-mock>=3.14", "hypothesis>=6.100", "trustme>=1.2", "setuptools<80"),
    *("nose2==0.16.0", "flufl.testing==0.8"),
    # mailrise pins versions of these dependencies that cannot be built.
    *("apprise==1.4.5", "PyYAML>=6"),
)

WITHOUT_DEPENDENCIES = ("mailrise",)
"""Projects that pin a version of aiosmtpd older than smtpd-fork supports."""


@dataclass(frozen=True)
class Environment:
    """The directories of the projects.

    :ivar python: the interpreter of the environment
    :ivar sources: a directory with the unpacked source distribution of each, by its name
    """

    python: Path
    sources: Path


def environment() -> Environment:
    """Return the environment; create it if it does not exist."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    needed = (*PINNED, *TOOLS, *_our_dependencies(), sys.version)
    name = hashlib.sha256("\n".join(needed).encode()).hexdigest()[:12]
    folder = cache / "smtpd-fork-suites" / name
    made = Environment(folder / "venv/bin/python", folder / "sources")
    if not (folder / "complete").exists():
        shutil.rmtree(folder.parent, ignore_errors=True)
        made.sources.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        with ThreadPoolExecutor() as pool:
            installed = pool.submit(_install, made.python)
            for _ in pool.map(lambda project: _unpack(project, made.sources), PINNED):
                pass
            installed.result()
        (folder / "complete").touch()
    return made


def with_our_session(made: Environment, folder: Path) -> Path:
    """Return an interpreter with the packages of *made*, and our session in place of aiosmtpd's.

    It is another environment on top, because a variable would not reach Mailman's processes.
    """
    subprocess.run([made.python, "-m", "venv", "--without-pip", folder], check=True)
    (folder / "witness").mkdir()
    python = folder / "bin/python"
    (lower,) = made.python.parents[1].glob("lib/*/site-packages")
    (upper,) = folder.glob("lib/*/site-packages")
    for script in made.python.parent.iterdir():
        if not (python.parent / script.name).exists():
            (python.parent / script.name).symlink_to(script)
    lines = (f"import site; site.addsitedir({str(lower)!r})", HERE, ROOT, "import our_session")
    (upper / "ours.pth").write_text("".join(f"{line}\n" for line in lines))
    return python


def _our_dependencies() -> Sequence[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return tuple(project["dependencies"])


def _install(python: Path) -> None:
    alone = [one for one in PINNED if one.startswith(WITHOUT_DEPENDENCIES)]
    others = [one for one in PINNED if one not in alone]
    _pip(python, "install", *others, *TOOLS, *_our_dependencies())
    _pip(python, "install", "--no-deps", *alone)


def _unpack(project: str, sources: Path) -> None:
    name = project.partition("==")[0]
    archives = sources / "archives" / name
    options = ("--no-deps", "--no-binary", ":all:", "--dest", str(archives))
    _pip(Path(sys.executable), "download", *options, project)
    (archive,) = archives.iterdir()
    with tarfile.open(archive) as tar:
        # For Python versions without the filter, as the manual of tarfile recommends.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(archives)
    (unpacked,) = (path for path in archives.iterdir() if path.is_dir())
    unpacked.rename(sources / name)


def _pip(python: Path, *words: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    subprocess.run(command, check=True)
