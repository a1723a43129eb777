"""The project's naming rules, checked on every name, docstring and string of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "benchmarks", "training")
RETIRED = (
    "opinion", "wary", "scenery", "glimpse", "glance", "familiarity", "standing", "settle",
    "lessons", "lesson", "teach", "promise", "promised", "verdicts", "verdict", "tally", "crowd",
    "linger", "lingering", "spool", "spooling", "spooled", "forsaken", "wish", "wanted",
    "rehearse", "rehearsal", "refusals", "parting", "plausibility", "suspects", "emission",
    "emit", "emitted", "answered", "drive_index", "picture", "pictures", "weather", "doubt",
    "natural",
)  # fmt: skip
# A docstring says what is computed or done, so that it starts with none of these.
NO_FIRST_WORDS = (
    "Give", "Gives", "Tell", "Tells", "Say", "Says", "Look", "Looks", "Take", "Takes",
    "What", "Who", "Whether", "How",
)  # fmt: skip
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

Place = tuple[int, str]  # line, name or text


def split_words(name: str) -> list[str]:
    """Split an identifier into lower-case words, at underscores and at camel case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def retired_words(name: str) -> list[str]:
    """List the retired words of an identifier; only whole words count."""
    joined = f"_{'_'.join(split_words(name))}_"
    return [word for word in RETIRED if f"_{word}_" in joined]


def defined_names(tree: ast.Module) -> Iterator[Place]:
    """Yield the names of classes, functions, arguments, variables and attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield node.lineno, name
            case ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.alias(asname=str(name)):
                yield node.lineno, name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def docstrings(tree: ast.Module) -> Iterator[Place]:
    """Yield every docstring with the line of its definition."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def strings(tree: ast.Module) -> Iterator[Place]:
    """Yield every string constant, docstrings and the parts of f-strings included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def violations(module: Path, source: str) -> Iterator[str]:
    """Yield `FILE:LINE: reason` for each broken rule; `module` is relative to the repository."""
    tree = ast.parse(source)
    names = [(1, part) for part in module.with_suffix("").parts] + [*defined_names(tree)]
    for line, name in names:
        for word in retired_words(name):
            yield f"{module}:{line}: name {name!r} has the retired word {word!r}"
    for line, text in docstrings(tree):
        first = re.match(r"\w*", text)
        if first and first[0] in NO_FIRST_WORDS:
            yield f"{module}:{line}: docstring starts with {first[0]!r}, not with what is done"
    for line, text in strings(tree):
        if found := re.search(r"\bpictures?\b", text, re.IGNORECASE):
            yield f"{module}:{line}: string has {found[0]!r} instead of 'image'"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_keeps_the_naming_rules(package):
    found = [
        violation
        for path in sorted((ROOT / package).rglob("*.py"))
        for violation in violations(path.relative_to(ROOT), path.read_text("utf-8"))
    ]
    assert not found, f"expected no violations in {package}, got\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("OpinionCache", ["opinion"]),
        ("emit_mask", ["emit"]),
        ("drive_index", ["drive_index"]),
        ("HTTPVerdict2", ["verdict"]),
        ("semitone", []),
        ("settled", []),
        ("index_drive", []),
    ],
)
def test_only_whole_words_of_a_name_count(name, words):
    assert retired_words(name) == words


@pytest.mark.parametrize(
    ("source", "line", "word"),
    [
        ("def crowd():\n    pass", 1, "crowd"),
        ("def f(a, *, wish=1):\n    pass", 1, "wish"),
        ("class A:\n    doubt: int = 0", 2, "doubt"),
        ("a.natural = 1", 1, "natural"),
        ("import a as spool", 1, "spool"),
        ("async def linger():\n    pass", 1, "linger"),
        ('def f():\n    """Whether it is."""', 1, "Whether"),
        ('"""How a file is read."""', 1, "How"),
        ('raise ValueError(f"{n} pictures")', 1, "pictures"),
    ],
)
def test_each_kind_of_violation_is_found(source, line, word):
    (found,) = violations(Path("app/a.py"), source)
    assert found.startswith(f"app/a.py:{line}: ")
    assert repr(word) in found


def test_names_of_other_libraries_may_be_read():
    assert not list(violations(Path("app/a.py"), "b = a.emit(pictures=1)"))
