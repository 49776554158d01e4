"""The lock files: the image has the requirements of pyproject.toml, by version and hash."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.installation import ROOT

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = ROOT / "packaging/image.lock"
BUILD = ROOT / "packaging/build.lock"
EXTRAS = ("cli", "dns", "metrics", "nats", "passwords", "redis", "rspamd", "s3", "webhook")
"""The extras of the image, see the Dockerfile."""

OF_THE_IMAGE = {
    "python_version": "3.11",
    "python_full_version": "3.11.7",  # The minimum: redis needs more packages before 3.11.3.
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
    "extra": "",
}


def locked(path: Path) -> dict[str, Version]:
    """Return the packages of a lock file, and their versions."""
    found = re.findall(r"^([a-z0-9-]+)==(\S+) \\$", path.read_text(), re.MULTILINE)
    return {name: Version(version) for name, version in found}


def wanted(path: Path) -> list[Requirement]:
    """Return the requirements in pyproject.toml for the image, or for its build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if path == BUILD:
        return [Requirement(text) for text in project["build-system"]["requires"]]
    extras = project["project"]["optional-dependencies"]
    texts = [*project["project"]["dependencies"], *(t for name in EXTRAS for t in extras[name])]
    return [Requirement(text) for text in texts]


def needed_for(requirement: Requirement) -> set[str]:
    """Return a package and its requirements in the image, as far as they are installed here."""
    found: set[str] = set()
    left = [requirement]
    while left:
        name = canonicalize_name(left.pop().name)
        if name not in found:
            found.add(name)
            needs = map(Requirement, requires(name) or [])
            left += [
                each for each in needs if not each.marker or each.marker.evaluate(OF_THE_IMAGE)
            ]
    return found


@pytest.mark.parametrize("path", [IMAGE, BUILD], ids=["image", "build"])
def test_every_version_is_one_that_pyproject_allows(path: Path) -> None:
    versions = locked(path)
    for requirement in wanted(path):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in {path.name}: make lock"
        assert version in requirement.specifier, (
            f"{requirement}, {version} in {path.name}: make lock"
        )


def test_the_image_has_what_is_needed_and_nothing_else() -> None:
    assert set(locked(IMAGE)) == set().union(*map(needed_for, wanted(IMAGE))), "make lock"


@pytest.mark.parametrize("path", [IMAGE, BUILD], ids=["image", "build"])
def test_every_line_is_a_package_with_hashes_and_names_no_host(path: Path) -> None:
    text = re.sub(r"^\s*#.*$\n", "", path.read_text(), flags=re.MULTILINE)
    entry = r"[a-z0-9-]+==[0-9a-z.]+(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"(?:{entry})+", text)
    assert "://" not in path.read_text()


def test_the_image_is_built_of_them() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes --only-binary :all: --no-deps" in text
    for path in (IMAGE, BUILD):
        assert f"-r /src/packaging/{path.name}" in text
