"""The commands of the tutorial, run in their order."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.factories.inference_server import free_port

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
TIMEOUT_S = 300


def write_command(path: Path, arguments: str) -> None:
    """Write an executable that runs this Python, in place of one in `.venv/bin`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
    path.chmod(0o755)


def test_commands_of_the_tutorial_lead_to_a_certified_service(tmp_path):
    write_command(tmp_path / ".venv/bin/segcal", "-m app ")
    write_command(tmp_path / ".venv/bin/python", "")
    commands = "\n".join(BLOCK.findall((ROOT / "docs/tutorial.md").read_text("utf-8")))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SEGCAL_")}
    log = tmp_path / "log"
    with log.open("wb") as output:
        shell = subprocess.Popen(
            ["bash", "-euc", commands.replace("8000", str(free_port()))],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(TIMEOUT_S)
        finally:
            if shell.poll() is None or shell.returncode != 0:
                os.killpg(
                    shell.pid, signal.SIGKILL
                )  # the server, where a command before its end failed

    text = log.read_text("utf-8", errors="replace")
    assert code == 0, text
    assert "is kept above a confidence of" in text
    mask = np.asarray(Image.open(tmp_path / "shapes/masks/000.mask.png"))
    labels = np.asarray(Image.open(tmp_path / "shapes/new/labels/000.png"))
    kept = mask != 255
    assert kept.mean() > 0.5
    assert (mask == labels)[kept].mean() > 0.8
