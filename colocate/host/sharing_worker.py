"""A process of the probe's own, started as a plain file: one that spins, or one that sleeps and tells how late it woke.

    python -S sharing_worker.py spin          spins from the first line on its standard input until that ends
    python -S sharing_worker.py sleep         for each line CYCLES on its standard input, one line of figures

It imports nothing of colocate, so that it is there within some 20 ms.
"""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
WORK_US, PAUSE_US = 1500, 300  # a sleeper that wants most of the core: at equal weight it waits every other time


def spin() -> None:
    """Take all the CPU there is."""
    while True:
        pass


def lateness_us(cycles: int) -> list[float]:
    """How late it woke each time after a short pause, microseconds, sorted; it works in between."""
    found = []
    for _ in range(cycles):
        due_ns = time.monotonic_ns() + PAUSE_US * 1000
        time.sleep(PAUSE_US / 1e6)
        woken_ns = time.monotonic_ns()
        found.append((woken_ns - due_ns) / 1000)
        while time.monotonic_ns() < woken_ns + WORK_US * 1000:
            pass
    return sorted(found)


def main(what: str) -> None:
    """Say that it is there, then do it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # stopped, it would not see its standard input end
    os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))  # whoever starts it may go first
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if what == "spin" and sys.stdin.readline():
        threading.Thread(target=spin, daemon=True).start()
    for line in sys.stdin:
        found = lateness_us(int(line))
        sys.stdout.write(f"{found[len(found) // 2]:.1f} {found[int(0.9 * len(found))]:.1f}\n")
        sys.stdout.flush()
    os._exit(0)  # whatever still spins


if __name__ == "__main__":
    main(sys.argv[1])
