"""A state file that outlives a reboot: `begin` leaves one and pulls the plug, `after` is the next boot.

python tests/vm/reboot.py begin|after
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

PLACE = Path("/var/lib/reboot-test")
STATE = PLACE / "state"
RUN = [sys.executable, "-m", "colocate", "run", "--memcached-ip", "127.0.0.1", "--runtime", "process", "--no-share"]


def begin() -> None:
    """Start a run that keeps its state on the disk, and reset the machine in the middle of it, nothing synced."""
    PLACE.mkdir(parents=True)
    (PLACE / "jobs.toml").write_text(
        '[[job]]\nname = "sleep"\nimage = "none"\ncommand = "sleep 9999"\ndirectory = "/"\n'
    )
    os.sync()
    subprocess.Popen([*RUN, "--jobs", "jobs.toml", "--state-dir", str(STATE)], cwd=PLACE)
    end_s = time.monotonic() + 120
    while not (STATE / "state.json").exists() or not json.loads((STATE / "state.json").read_text())["log"]:
        assert time.monotonic() < end_s, "no state was written"
        time.sleep(0.1)
    Path("/proc/sysrq-trigger").write_text("b")
    time.sleep(60)


def after() -> None:
    """The state is still there, and of another boot: it is discarded, and nothing is touched."""
    saved = json.loads((STATE / "state.json").read_text())
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert saved["boot_id"] != boot, "the machine has not been reset"
    pid = int(subprocess.check_output(["systemctl", "show", "memcached", "-p", "MainPID", "--value"]))
    before = os.sched_getaffinity(pid)
    victim = saved["service"]["pid"]  # whoever has this pid now is a stranger
    theirs = os.sched_getaffinity(victim) if Path(f"/proc/{victim}").exists() else None
    done = subprocess.run(
        [*RUN, "--jobs", "jobs.toml", "--state-dir", str(STATE), "--once"],
        cwd=PLACE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1}, (done.returncode, done.stderr)
    assert "left by an earlier run" not in done.stderr, done.stderr
    assert "set aside" not in done.stderr, done.stderr
    assert not (STATE / "state.json").exists()
    assert os.sched_getaffinity(pid) == before
    assert theirs is None or os.sched_getaffinity(victim) == theirs


if __name__ == "__main__":
    {"begin": begin, "after": after}[sys.argv[1]]()
