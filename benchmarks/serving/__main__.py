"""Run `python -m benchmarks.serving MEASUREMENT [options]`."""

from benchmarks import command_line, cost, request
from benchmarks.harness import run_command
from benchmarks.serving.comparison import compare
from benchmarks.serving.growth import growth, sessions
from benchmarks.serving.processes import lock, processes
from benchmarks.serving.resources import large, memory, tail, uploads

COMMANDS = {
    "compare": compare,
    "cost": cost.main,
    "request": request.main,
    "files": command_line.files,
    "growth": growth,
    "sessions": sessions,
    "processes": processes,
    "lock": lock,
    "memory": memory,
    "tail": tail,
    "uploads": uploads,
    "large": large,
}

if __name__ == "__main__":
    run_command("benchmarks.serving", COMMANDS)
