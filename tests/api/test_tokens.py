"""The admin token is stored atomically, readable by its owner only, one for all processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.api.auth import FILE, admin_token
from app.errors import SettingsError

ROOT = Path(__file__).parents[2]

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from app.api import auth as tokens
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
os.fsync = killed
tokens.admin_token(None, Path(sys.argv[1]))
"""

PRINT_TOKEN = """
import sys
from pathlib import Path
from app.api.auth import admin_token
print(admin_token(None, Path(sys.argv[1])))
"""


def test_token_is_created_once_and_readable_by_its_owner_only(tmp_path):
    made = admin_token(None, tmp_path / "new")
    assert admin_token(None, tmp_path / "new") == made
    assert (tmp_path / "new" / FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "new").iterdir() if path.suffix == ".tmp"] == []


def test_configured_token_is_not_stored(tmp_path):
    assert admin_token("configured", tmp_path) == "configured"
    assert not (tmp_path / FILE).exists()


def test_empty_token_file_is_filled(tmp_path):
    (tmp_path / FILE).touch(mode=0o644)
    made = admin_token(None, tmp_path)
    assert (tmp_path / FILE).read_text() == f"{made}\n"
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_kill_during_write_leaves_no_token_file(tmp_path):
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / FILE).exists()
    made = admin_token(None, tmp_path)
    assert (tmp_path / FILE).read_text().strip() == made


def test_concurrent_processes_use_one_token(tmp_path):
    command = [sys.executable, "-c", PRINT_TOKEN, str(tmp_path)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    tokens_used = {process.communicate()[0].splitlines()[-1] for process in started}
    assert tokens_used == {(tmp_path / FILE).read_text().strip()}


def test_token_is_not_stored_in_a_read_only_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    made = admin_token(None, tmp_path / "file" / "inside")
    assert f"not stored: it changes with every start): {made}" in capsys.readouterr().out


def test_damaged_token_file_stops_the_start_with_a_sentence(tmp_path):
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="expected a token in ASCII, got other bytes"):
        admin_token(None, tmp_path)
