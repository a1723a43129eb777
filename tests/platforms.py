"""Check that each dependency has a wheel on each platform: `python -m tests.platforms`.

`make lint` runs it when pyproject.toml or constraints.txt has changed. pip's `--platform` chooses
wheels, but evaluates environment markers for the machine that it runs on, so that the markers are
evaluated here.
"""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHON_VERSION = "3.11"  # of requires-python and of the image
GLIBC = (28, 27, 26, 24, 17, 12, 5)  # 2.28 is that of Debian 10 and of RHEL 8
MACOS = (14, 13, 12, 11)
# Either is installed here, never both; they require the same.
TWINS = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-gpu": "onnxruntime"}


@dataclass(frozen=True)
class Platform:
    """A kind of machine: tags of its wheels, best first, and values of environment markers."""

    tags: tuple[str, ...]
    sys_platform: str
    platform_system: str
    platform_machine: str

    def markers(self) -> dict[str, str]:
        """Return the environment in which markers are evaluated."""
        return {
            "sys_platform": self.sys_platform,
            "platform_system": self.platform_system,
            "platform_machine": self.platform_machine,
            "os_name": "nt" if self.sys_platform == "win32" else "posix",
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "python_version": PYTHON_VERSION,
            "python_full_version": f"{PYTHON_VERSION}.0",
            "extra": "",
        }


def linux(machine: str) -> Platform:
    """Return a Linux with glibc 2.28."""
    tags = *(f"manylinux_2_{minor}_{machine}" for minor in GLIBC), f"manylinux2014_{machine}"
    return Platform(tags, "linux", "Linux", machine)


PLATFORMS = {
    "Linux x86-64": linux("x86_64"),
    "Linux ARM64": linux("aarch64"),
    "macOS ARM64": Platform(
        tuple(f"macosx_{major}_0_arm64" for major in MACOS), "darwin", "Darwin", "arm64"
    ),
    "Windows x86-64": Platform(("win_amd64",), "win32", "Windows", "AMD64"),
}


def dependencies() -> list[str]:
    """Read the requirements of the service."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    required: list[str] = project["dependencies"]
    return required


def required_by(name: str) -> list[str]:
    """Return the requirements of an installed package; none of one that is not installed."""
    for installed in (name, TWINS.get(name)):
        try:
            return (installed and requires(installed)) or []
        except PackageNotFoundError:
            continue
    return []


def packages(platform: Platform) -> set[str]:
    """Return the names of all packages that the service needs on a platform."""
    found: set[str] = set()
    pending: list[str] = dependencies()
    while pending:
        requirement = Requirement(pending.pop())
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if name in found or (marker and not marker.evaluate(platform.markers())):
            continue
        found.add(name)
        pending += required_by(name)
    return found


def command(platform: Platform, names: set[str], folder: str) -> Iterator[str]:
    """Yield the arguments of pip, which finds the pinned wheels and installs nothing."""
    yield from (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    yield from ("--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:")
    yield from ("--target", folder, "--implementation", "cp", "--python-version", PYTHON_VERSION)
    for tag in platform.tags:
        yield from ("--platform", tag)
    yield from ("--constraint", str(ROOT / "constraints.txt"), *sorted(names))


def missing(platform: Platform) -> str:
    """Return pip's errors on a platform; empty where each package has a wheel."""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            list(command(platform, packages(platform), folder)),
            check=False,
            capture_output=True,
            text=True,
        )
    errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
    return "" if run.returncode == 0 else "\n".join(errors) or run.stderr


def main() -> int:
    """Print each platform's result; return 1 where a wheel is missing."""
    with ThreadPoolExecutor() as pool:
        results = dict(zip(PLATFORMS, pool.map(missing, PLATFORMS.values()), strict=True))
    for name, errors in results.items():
        sys.stdout.write(f"{name}: {errors or 'each dependency has a wheel'}\n")
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
