"""What was injected, what was checked, whether it held: the table that `make faults` prints.

python -m tests.faults.ledger DIRECTORY  # of all sessions that have left theirs there (FAULTS_LEDGER)
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FAULTS = {
    1: "the latency probe times out or is refused",
    2: "a sample is empty, not a number, negative, or from a clock that steps back",
    3: "the latency is fine because the load is gone",
    4: "memcached restarts, or its pid is another program's",
    5: "memcached's threads come and go while they are pinned",
    6: "the wall clock jumps, the controller is frozen",
    7: "a container vanishes, is removed, paused or replaced by somebody",
    8: "Docker says yes and the cores stay as they were",
    9: "the kernel refuses a set of cores; a core goes offline",
    10: "a pause fails, hangs, or comes late",
    11: "somebody else changes what we set",
    12: "some moves of a tick succeed, then one fails",
    13: "dockerd is stopped, slow, broken or moved",
    14: "the engine's event stream is silently dead",
    15: "SIGTERM, SIGINT, SIGHUP, twice",
    16: "SIGKILL at every step",
    17: "a reboot with a state file left",
    18: "the state file, the log or the disk is broken",
    19: "two controllers at once",
    20: "bad configuration",
    21: "a policy raises, talks nonsense, hangs or leaks",
    22: "the controller is starved of CPU",
    23: "a flood of log lines, a slow client, a port taken",
    24: "a million ticks, hundreds of jobs",
    25: "the load steps, spikes, saws at the threshold",
    26: "memcached needs the whole machine",
    27: "jobs end, fail or fork while cores move",
}  # those of node agents; the number is the row


@dataclass(frozen=True, slots=True)
class Injection:
    """One fault, injected once.

    Attributes:
        fault: its number in `FAULTS`.
        where: `live` (this machine, real memcached, real engine), `told` (there, too, but only told or refused in the
            machine's place) or `simulated`.
        checks: how often the invariants were checked.
        recovery_s: from the end of the fault (or from a death) until all was as it must be; None where there is nothing
            to recover, or in virtual time.
    """

    fault: int
    where: str
    checks: int
    held: bool
    recovery_s: float | None = None


def table(injections: Iterable[Injection]) -> str:
    """One row a fault and place."""
    rows: dict[tuple[int, str], list[Injection]] = {}
    for one in injections:
        rows.setdefault((one.fault, one.where), []).append(one)
    lines = [f"{'fault':<74} {'where':<10} {'injected':>8} {'checked':>9} {'held':>5} {'p50 s':>7} {'p99 s':>7}"]
    for (fault, where), found in sorted(rows.items()):
        times_s = sorted(one.recovery_s for one in found if one.recovery_s is not None)
        middle = f"{statistics.median(times_s):.3f}" if times_s else ""
        last = f"{times_s[min(len(times_s) - 1, int(0.99 * len(times_s)))]:.3f}" if times_s else ""
        held = "yes" if all(one.held for one in found) else "NO"
        name = f"{fault:>2} {FAULTS[fault]}"
        checks = sum(one.checks for one in found)
        lines.append(f"{name:<74} {where:<10} {len(found):>8} {checks:>9} {held:>5} {middle:>7} {last:>7}")
    if missing := sorted(FAULTS.keys() - {fault for fault, _ in rows}):
        lines.append(f"not injected: {', '.join(map(str, missing))}")
    return "\n".join(lines)


def main(directory: str) -> int:
    """Print what all sessions have left; exit code 1 where something did not hold."""
    books = [json.loads(path.read_text()) for path in Path(directory).iterdir()]
    injections = [Injection(*one) for injected, _ in books for one in injected]
    lines = [table(injections), *(note for _, notes in books for note in notes)]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(not injections or not all(one.held for one in injections))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
