"""The rooms of the design: what each may import, and where status codes live."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "app").rglob("*.py"))
WEB = {"fastapi", "starlette", "uvicorn", "httpx", "httpx2", "h11"}
STATUS_CODES = {400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 429, 500, 503, 507}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, functions' own imports included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of an app module, or the top-level name of anything else."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "app" else parts[0]


def rooms_used_by(prefix: str) -> set[str]:
    """All rooms and packages that the modules of a room import, the room itself aside."""
    inside = [path for path in MODULES if room_of(name_of(path)) == prefix]
    assert inside, f"expected a room {prefix}"
    return {room_of(module) for path in inside for module in imports(path)} - {prefix}


@pytest.mark.parametrize("room", ["app.inference", "app.calibration", "app.imaging"])
def test_core_room_imports_none_of_ours_but_errors_and_what_kernels_need(room):
    used = {used for used in rooms_used_by(room) if used.startswith("app")}
    assert used <= {"app.errors", "app.compilation", "app.arithmetic"}


def test_errors_import_nothing_but_the_standard_library():
    assert rooms_used_by("app.errors") <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.parent.name != "api" and p.name != "main.py"], ids=name_of
)
def test_module_outside_api_imports_no_web_framework(path):
    assert {module.split(".")[0] for module in imports(path)}.isdisjoint(WEB)


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name == "app"], ids=name_of)
def test_module_outside_api_knows_no_status_code(path):
    # The numerical rooms have numbers of their own; they load no web at all, see below.
    numbers = {
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and type(node.value) is int
    }

    assert numbers.isdisjoint(STATUS_CODES)
    assert "fastapi.HTTPException" not in imports(path)


@pytest.mark.parametrize(
    "name",
    ["service", "artifacts", "results", "cli", "batch", "labelled", "evaluation", "reporting"],
)
def test_nothing_but_main_reaches_into_api(name):
    assert "app.api" not in rooms_used_by(f"app.{name}")


def test_numerical_core_loads_no_web_framework():
    core = [
        name_of(path)
        for path in MODULES
        if path.parent.name in ("calibration", "inference", "imaging")
    ]
    code = f"import sys, {', '.join([*core, 'app.service', 'app.artifacts'])}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert WEB.isdisjoint(done.stdout.split())
