"""The `longtake` command, until all that it needs is imported."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """As `serving.cli.main.main`, whose imports take seconds: Ctrl-C ends them without showing where they were."""
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from serving.cli.main import main as run

    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
