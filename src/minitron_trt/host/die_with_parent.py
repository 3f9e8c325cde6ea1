"""Become a program that ends when its parent dies.

    python die_with_parent.py PARENT PROGRAM ARGUMENT ...

A process of its own, because code between fork and exec may deadlock in a program that has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_CANNOT_RUN = 127  # what a shell exits with


def main(parent: int, program: list[str]) -> None:
    """Have the kernel send SIGTERM when the parent dies, however it dies, and run the program."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the parent is gone already")
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"error: {program[0]} cannot be started: {error.strerror}", flush=True)  # noqa: T201
        sys.exit(_CANNOT_RUN)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
