"""One server process of `segcal serve --processes`, started by `app.cli.processes`."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

from app.cli.main import print_error
from app.errors import SegcalError
from app.process_group import ProcessGroup
from app.settings import load_settings


class Listener(socket.socket):
    """The listening socket of the supervisor, which has set the length of its queue."""

    def listen(self, backlog: int = 0, /) -> None:
        """Keep the length of the queue."""


def main() -> None:
    """Serve until a signal, or until the supervisor ends.

    Arguments: file descriptor of the listening socket, host, folder, count and index of the group,
    and whether the process is a replacement. Exits with 2 for a SegcalError, as `segcal` does.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the models are going to be loaded anyway
    descriptor, host, folder, count, index, replacement = sys.argv[1:]
    threading.Thread(target=end_with_supervisor, name="supervisor", daemon=True).start()
    group = ProcessGroup(Path(folder), int(count), int(index), replacement == "True")
    try:
        settings = load_settings()
        from app.main import run_in_group

        run_in_group(settings, host, Listener(fileno=int(descriptor)), group)
    except SegcalError as error:
        print_error(error)
        sys.exit(2)


def end_with_supervisor() -> None:
    """Drain once the supervisor's end of standard input closes, also where it was killed."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
