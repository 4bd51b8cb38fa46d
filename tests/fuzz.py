"""Fuzzing of the two parsers of files from outside, for a bounded time: `python -m tests.fuzz eventlog --seconds 60`.

Guided by coverage (atheris, which is libFuzzer). An input for which something in `tests.parsers` does not hold, or that
takes half a minute, is saved, and the exit code is 1. Files that are given are read and never written to.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from hashlib import sha256
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["colocate"]):
    from tests import parsers

TARGETS = {"eventlog": (parsers.judge_log, parsers.LOG), "mcperf": (parsers.judge_output, parsers.OUTPUT)}
WORDS = {
    "eventlog": (
        "2025-05-14T12:22:01.250000 ", "2025-05-14T12:22:01Z ", "start ", "end ", "update_cores ", "updated_cores ",
        "pause ", "unpause ", "custom ", "scheduler", "memcached", "parsec_", "splash2x_", " [0,1] 2", "[2, 1]", "0-3",
        "%0A", "\r\n",
    ),
    "mcperf": (
        "Total number of intervals = ", "Timestamp start: ", "Timestamp end: ", "1747218116063", "Total QPS = ",
        " / 30.0s)", "# interval: ", " s", "# late", "#type", "Random waveform", "read ", "-nan", "\r\n", ")",
    ),
}  # fmt: skip
LONGEST_BYTES = 2048  # forty events; what is longer is cut
HANGS_S = 30


def main() -> None:
    """Fuzz one parser; ends the process."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    add = parser.add_argument
    add("target", choices=TARGETS)
    add("--seconds", type=int, default=60, metavar="S", help="how long (%(default)s)")
    add("--corpus", type=Path, metavar="DIR", help="recorded files to begin with, besides a small sample")
    add("--findings", type=Path, default=Path("fuzz-findings"), metavar="DIR", help="(%(default)s)")
    add("--seed", type=int, default=1, metavar="N", help="of the mutations (%(default)s)")
    args = parser.parse_args()
    judge, sample = TARGETS[args.target]
    args.findings.mkdir(parents=True, exist_ok=True)

    def one(data: bytes) -> None:
        try:
            judge(data.decode(errors="replace"))
        except Exception:  # whatever it is, it is a finding
            path = args.findings / f"{args.target}-{sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            sys.stderr.write(f"{traceback.format_exc()}\nthe input is in {path}\n")
            sys.stderr.flush()
            os._exit(1)  # libFuzzer would say it all again

    with tempfile.TemporaryDirectory(prefix="colocate-fuzz-") as folder:
        seeds, words = Path(folder, "corpus"), Path(folder, "words")
        seeds.mkdir()
        for name, text in {"whole": sample, "cut": sample[: len(sample) // 2], "twice": 2 * sample}.items():
            (seeds / name).write_text(text)
        words.write_text("".join(f"{_quoted(word)}\n" for word in WORDS[args.target]))
        options = {
            "dict": words, "max_total_time": args.seconds, "seed": args.seed, "max_len": LONGEST_BYTES,
            "timeout": HANGS_S, "artifact_prefix": f"{args.findings}/{args.target}-", "error_exitcode": 1,
            "timeout_exitcode": 1, "verbosity": 0, "print_final_stats": 1,
        }  # fmt: skip
        corpora = [str(seeds), *([str(args.corpus)] if args.corpus else [])]  # new inputs go to the first
        child = os.fork()  # libFuzzer ends its process when it is done
        if child == 0:
            atheris.Setup([sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), *corpora], one)
            atheris.Fuzz()
        _, status = os.waitpid(child, 0)
    sys.exit(int(status != 0))


def _quoted(word: str) -> str:
    """As libFuzzer's dictionaries have it."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word.encode()) + '"'


if __name__ == "__main__":
    main()
