"""The import table of docs/design.md, held against the imports of the code."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "app").rglob("*.py"))
HTTP_FRAMEWORKS = {"fastapi", "starlette", "uvicorn", "h11"}
HTTP_PACKAGES = {"api", "main"}
STATUS_CODES = {400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 429, 500, 503, 507}
TOP_LEVEL_LIMIT = 9
PUBLIC = {"client"}  # users import from it as well


def read_table() -> dict[str, list[str]]:
    """Read the rows of the design's import table: unit -> units or modules it may import."""
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]*) \|$", text, flags=re.MULTILINE)
    table = {}
    for units, allowed in rows:
        for unit in re.findall(r"`([\w.]+)`", units):
            table[unit] = re.findall(r"`([\w.]+)`", allowed)
    return table


TABLE = read_table()


def imports(path: Path) -> Iterator[str]:
    """List every module that a file imports, imports inside functions included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    """Return the dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def unit_of(module: str) -> str:
    """Return the unit of a module of the app: a package, or a module at the top."""
    return module.split(".")[1] if "." in module else module


def to_path(module: str) -> str:
    """Return the path of a module without its ending, relative to the root."""
    return module.replace(".", "/")


def may_import(unit: str, module: str) -> bool:
    """Return whether the table lets a unit import a module of the app."""
    target = module.removeprefix("app.")
    return any(target == entry or target.startswith(f"{entry}.") for entry in TABLE[unit])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_what_the_table_allows(path):
    unit = unit_of(name_of(path))
    if name_of(path) in ("app", "app.__main__"):
        return
    own = [module for module in imports(path) if module.startswith("app.")]
    foreign = [m for m in own if unit_of(m) not in (unit, "__version__")]
    assert [m for m in foreign if not may_import(unit, m)] == []


@pytest.mark.parametrize("package", sorted(p.parent.name for p in ROOT.glob("app/*/__init__.py")))
def test_package_lists_what_other_packages_import_from_it(package):
    imported = {
        module.rpartition(".")[2]
        for path in MODULES
        if unit_of(name_of(path)) not in (package, "__main__")
        for module in imports(path)
        if module.startswith(f"app.{package}.") and not (ROOT / f"{to_path(module)}.py").exists()
    }
    exported = set(getattr(importlib.import_module(f"app.{package}"), "__all__", ()))
    assert imported - exported == set()
    if package not in PUBLIC:
        assert exported - imported == set()


def test_table_has_one_row_for_every_unit():
    units = {unit_of(name_of(path)) for path in MODULES} - {"app", "__main__"}
    assert set(TABLE) == units


def test_table_has_no_cycle():
    remaining = {unit: {entry.split(".")[0] for entry in TABLE[unit]} for unit in TABLE}
    while remaining:
        leaves = {unit for unit, needed in remaining.items() if not needed & set(remaining)}
        assert leaves, f"expected no cycle, got one among {sorted(remaining)}"
        remaining = {unit: needed for unit, needed in remaining.items() if unit not in leaves}


def test_few_modules_lie_at_the_top():
    top = [path for path in MODULES if path.parent.name == "app"]
    assert len(top) <= TOP_LEVEL_LIMIT


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_http_layer_imports_a_web_framework(path):
    if unit_of(name_of(path)) not in HTTP_PACKAGES:
        assert {module.split(".")[0] for module in imports(path)}.isdisjoint(HTTP_FRAMEWORKS)


# These packages compute with numbers that look like status codes.
NUMERICAL = {"calibration", "imaging", "inference"}


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if unit_of(name_of(p)) not in NUMERICAL | HTTP_PACKAGES],
    ids=name_of,
)
def test_no_module_below_the_http_layer_holds_a_status_code(path):
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    numbers = {n.value for n in nodes if isinstance(n, ast.Constant) and type(n.value) is int}
    assert numbers.isdisjoint(STATUS_CODES)


def test_numerical_packages_load_no_web_framework():
    units = ("calibration", "inference", "imaging", "serving", "storage")
    modules = [name_of(path) for path in MODULES if unit_of(name_of(path)) in units]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert HTTP_FRAMEWORKS.isdisjoint(done.stdout.split())
