"""The admin's token: kept whole or not at all, for its owner alone, and one for all processes."""

import signal
import subprocess
import sys
from pathlib import Path

from app.api.auth import FILE, admin_token

ROOT = Path(__file__).parents[2]

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from app.api import auth as tokens
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
os.fsync = killed
tokens.admin_token(None, Path(sys.argv[1]))
"""

TELL = """
import sys
from pathlib import Path
from app.api.auth import admin_token
print(admin_token(None, Path(sys.argv[1])))
"""


def test_it_is_made_once_and_read_by_its_owner_alone(tmp_path):
    made = admin_token(None, tmp_path / "new")
    assert admin_token(None, tmp_path / "new") == made
    assert (tmp_path / "new" / FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "new").iterdir() if path.suffix == ".tmp"] == []


def test_a_configured_one_is_not_kept(tmp_path):
    assert admin_token("configured", tmp_path) == "configured"
    assert not (tmp_path / FILE).exists()


def test_an_empty_file_is_filled(tmp_path):
    (tmp_path / FILE).touch(mode=0o644)
    made = admin_token(None, tmp_path)
    assert (tmp_path / FILE).read_text() == f"{made}\n"
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_kill_while_it_is_written_leaves_none(tmp_path):
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / FILE).exists()
    made = admin_token(None, tmp_path)
    assert (tmp_path / FILE).read_text().strip() == made


def test_several_processes_agree(tmp_path):
    command = [sys.executable, "-c", TELL, str(tmp_path)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    told = {process.communicate()[0].splitlines()[-1] for process in started}
    assert told == {(tmp_path / FILE).read_text().strip()}


def test_where_nothing_can_be_written_it_lives_as_long_as_the_process(tmp_path, capsys):
    (tmp_path / "file").touch()
    made = admin_token(None, tmp_path / "file" / "inside")
    assert f"not stored: it changes with every start): {made}" in capsys.readouterr().out
