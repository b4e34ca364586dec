"""`python -m larder`: becomes the `larder` command, with the same arguments."""

from __future__ import annotations

import os
import sys

from larder._binary import BinaryNotFound, find_binary


def main() -> None:
    try:
        binary = find_binary()
    except BinaryNotFound as error:
        print(f"larder: {error}", file=sys.stderr)
        sys.exit(1)
    # Replaces this process: signals and the exit code are the command's own.
    os.execv(binary, ["larder", *sys.argv[1:]])


if __name__ == "__main__":
    main()
