"""One record a tick (cause, action, effect), as JSON lines beside the event log.

The loop only appends to a list; a thread formats and writes it once a second, so that a slow disk slows nobody.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

_EVERY_S = 1.0


def metrics_path(log: Path) -> Path:
    """Where the metrics of a run lie: beside its event log."""
    return log.with_suffix(".jsonl")


class MetricsWriter:
    """Appends records to a file; a disk that refuses costs the records, never the run.

    Args:
        path: the file; its directory exists.

    Attributes:
        lost: records that could not be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self._records: list[Mapping[str, object]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, object]) -> None:
        """Take a record; it must not be changed afterwards."""
        self._records.append(record)

    def close(self) -> None:
        """Write what is left; idempotent."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        records, self._records = self._records, []
        if not records:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{json.dumps(_finite(record), separators=(',', ':'))}\n" for record in records))
        except OSError:
            self.lost += len(records)


def read(path: Path) -> Iterator[dict[str, object]]:
    """The records of a file; a line that is no record (the torn last one of a killed run) is skipped.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _finite(record: Mapping[str, object]) -> dict[str, object]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
