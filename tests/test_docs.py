"""The documents agree with the code: API reference, settings, links and paths of files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client import Client
from app.settings import Settings
from docs import generate_command_line
from docs.generate_api import TARGET, build_openapi, render

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "training/README.md"])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
CODE_PATH = re.compile(r"`((?:app|docs|tests|training|benchmarks)/[\w/.]*)`")


NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def name_of(path: Path) -> str:
    """Return a document's path below the repository's root."""
    return str(path.relative_to(ROOT))


def test_api_reference_is_what_the_generator_writes():
    assert TARGET.read_text("utf-8") == render(build_openapi()), "expected the output of make docs"


def test_command_line_reference_is_what_the_generator_writes():
    text = generate_command_line.TARGET.read_text("utf-8")
    assert text == generate_command_line.render(), "expected the output of make docs"


def test_every_command_is_in_the_table():
    text = (ROOT / "docs" / "run.md").read_text("utf-8")
    table = text.partition("## Command line")[2].partition("[command-line.md]")[0]
    sections = re.findall(r"^## segcal (.*)", generate_command_line.render(), flags=re.MULTILINE)
    for words in map(str.split, sections):
        (row,) = [line for line in table.splitlines() if f"`segcal {words[0]}" in line]
        assert re.search(rf"(`| ){words[-1]}\b", row), row


def test_every_setting_is_in_the_table():
    text = (ROOT / "docs" / "run.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `SEGCAL_(\w+)` \|", text, flags=re.MULTILINE))
    assert documented == {name.upper() for name in Settings.model_fields}


def test_tests_of_the_threat_model_exist():
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    threats = text.partition("## Threats")[2].splitlines()
    rows = [line for line in threats if line.startswith("|")][2:]
    assert [row for row in rows if not NAMED_TEST.search(row)] == []
    for path, name in NAMED_TEST.findall(text):
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), f"{path}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_and_paths_lead_to_files(document):
    text = document.read_text("utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []
    assert [path for path in CODE_PATH.findall(text) if not (ROOT / path).exists()] == []


def texts_of_the_code() -> Iterator[str]:
    """Yield each string of the app, with … for the values that it is formatted with."""
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                yield "".join(map(str, parts))


def test_sentences_of_the_troubleshooting_are_in_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    sentences = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    known = list(texts_of_the_code())
    assert len(sentences) > 40
    missing = [each for each in sentences if not any(each.strip("…") in text for text in known)]
    assert missing == []


def test_every_document_is_in_the_index():
    text = (ROOT / "docs" / "index.md").read_text("utf-8")
    own = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    parts = {"ablation-tables.md", "mass-tables.md", "paper-tables.md"}  # of paper.md
    assert own - set(LINK.findall(text)) == parts


def test_lines_of_the_api_reference_are_python():
    lines = re.findall(r"```python\n(.*?)\n```", TARGET.read_text("utf-8"), flags=re.DOTALL)
    methods = {f"client.{name}" for name in dir(Client)} | {"http.get", "http.post", "http.delete"}
    for line in lines[1:]:  # after the introduction's
        call = re.match(r"(?:list\()?([\w.]+)\(", line)
        assert call is not None, line
        assert call[1] in methods, line
        compile(line, "api.md", "eval")
