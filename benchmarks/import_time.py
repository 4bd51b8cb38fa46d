"""How long the command line takes until it speaks: `colocate --help` and `colocate run --help`, beside a bare Python.

    python benchmarks/import_time.py [--trials N] [--json]

Milliseconds, best and median, and the median over that of `python -c pass`, in turn with it, as a busy machine slows
both. Also which heavy packages each has loaded; none may be an extra's. The limit of `colocate --help` is 400 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

BARE = ("-c", "pass")
COMMANDS = {"colocate --help": ("--help",), "colocate run --help": ("run", "--help")}
HEAVY = (
    "matplotlib", "plotly", "textual", "starlette", "uvicorn", "prometheus_client",  # of the extras
    "scipy", "numpy", "simpy", "docker", "rich",
)  # fmt: skip


def took_ms(*words: str) -> float:
    """The wall time of one Python process."""
    begin_s = time.perf_counter()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    return 1e3 * (time.perf_counter() - begin_s)


def loaded(words: tuple[str, ...]) -> list[str]:
    """The heavy packages that a command loads, by what `python -X importtime` writes."""
    argv = [sys.executable, "-X", "importtime", "-m", "colocate", *words]
    told = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True).stderr
    modules = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    return [name for name in HEAVY if name in modules]


def measure(trials: int) -> dict[str, dict[str, object]]:
    """The figures of each command."""
    times_ms: dict[str, list[float]] = {"python -c pass": [], **{name: [] for name in COMMANDS}}
    for _ in range(trials):
        times_ms["python -c pass"].append(took_ms(*BARE))
        for name, words in COMMANDS.items():
            times_ms[name].append(took_ms("-m", "colocate", *words))
    bare_ms = statistics.median(times_ms["python -c pass"])
    return {
        name: {
            "best_ms": round(min(found), 1),
            "median_ms": round(statistics.median(found), 1),
            "ratio": round(statistics.median(found) / bare_ms, 1),
            "loaded": loaded(COMMANDS[name]) if name in COMMANDS else [],
        }
        for name, found in times_ms.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10, help="of each command (%(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args.trials)
    if args.json:
        print(json.dumps(results))
    else:
        for name, figures in results.items():
            print(f"{name}: {json.dumps(figures)}")


if __name__ == "__main__":
    main()
