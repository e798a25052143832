"""Where the command `greentune` begins: Ctrl-C is quiet even while its modules are being loaded."""

from __future__ import annotations

import sys

#: as a shell says of SIGINT
EXIT_INTERRUPTED = 130


def main() -> None:
    try:
        from api.cli import main as run  # noqa: PLC0415  loading it takes a second

        run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
