"""Puts back what a run that was killed has left behind."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from colocate.errors import UserError
from colocate.eventlog import SCHEDULER, Event, parse
from colocate.host.lock import goes_on
from colocate.host.memcached import PinError, restore_from
from colocate.host.proctree import kill_leftovers, marked_runs
from colocate.host.sharing import remove_groups
from colocate.host.state import Saved


def restore(saved: Saved) -> tuple[list[str], list[str]]:
    """Give memcached its affinity back, remove the run's jobs and control groups unless it keeps them, close its log.

    Returns:
        what was done, and what could not be done; one line each.
    """
    done: list[str] = []
    failed: list[str] = []
    try:
        threads = restore_from(saved.service)
        done.append(f"memcached's affinity restored on {threads} threads" if threads else "that memcached has ended")
    except (PinError, ValueError) as error:
        failed.append(str(error))
    if not saved.keeps_jobs:
        for told, more in zip((done, failed), end_jobs(saved.run, saved.runtime), strict=True):
            told += more
        there = [Path(path) for path in saved.groups if Path(path).is_dir()]
        failed += remove_groups(there)
        removed = [path for path in there if not path.exists()]
        done += [f"control group {removed[0].name} removed"] if removed else []
    if not failed and saved.log and (closed := _close_log(Path(saved.log))):
        done.append(closed)
    return done, failed


def _close_log(path: Path) -> str:
    """Write the last lines that a killed run could not; a torn line before them goes. What was done, if anything.

    The lines that are there are not touched, so that the log is legal whenever this is killed, too.
    """
    try:
        with path.open("r+b", buffering=0) as file:
            text = file.read()
            end = text.rfind(b"\n") + 1
            events = parse(text[:end].decode(errors="replace")).events
            if not events or (events[-1].event, events[-1].job) == ("end", SCHEDULER):
                return ""
            now = max(datetime.now(), events[-1].time)
            last = [Event(now, "custom", SCHEDULER, comment="killed, put back"), Event(now, "end", SCHEDULER)]
            file.truncate(end)
            file.seek(end)
            file.write("".join(f"{event}\n" for event in last).encode())
    except FileNotFoundError:  # it has been moved away, and needs no end
        return ""
    except OSError as error:
        return f"{path} has no last line: {error.strerror}"
    return f"{path} closed"


def remove_all() -> tuple[list[str], list[str]]:
    """End the jobs of every run of ours that is over.

    Returns:
        what was done, and what could not be done; one line each.
    """
    done, failed = remove_containers(None)
    for run in sorted(marked_runs()):
        if not goes_on(run):
            for told, more in zip((done, failed), kill_leftovers(run), strict=True):
                told += more
    return done, failed


def end_jobs(run: str, runtime: str) -> tuple[list[str], list[str]]:
    """End the jobs of one run.

    Returns:
        what was done, and what could not be done; one line each.
    """
    return kill_leftovers(run) if runtime == "process" else remove_containers(run)


def remove_containers(run: str | None) -> tuple[list[str], list[str]]:
    """Remove the containers of one run, or of every run of ours that is over.

    Returns:
        what was removed, and what could not be; one line each.
    """
    # Docker's client takes long to load, and runs of plain processes are put back without it.
    from colocate.host.engine import (
        LONG_TIMEOUT_S,
        START_TIMEOUT_S,
        client_from_env,
        connect,
        leftover_runs,
        remove_leftovers,
    )

    try:
        client = connect(client_from_env, START_TIMEOUT_S)
    except UserError as error:
        return [], [f"containers are not looked for: {error}"]
    try:
        runs = leftover_runs(client)
        over = [id_ for id_ in runs if id_ == run or (run is None and not goes_on(id_))]
        found = {name for id_ in over for name in runs[id_]}
        client.api.timeout = int(LONG_TIMEOUT_S)  # a removal waits for disks
        failed = [line for id_ in over for line in remove_leftovers(client, id_)]
    except UserError as error:
        return [], [str(error)]
    finally:
        client.close()
    kept = {line.partition(":")[0] for line in failed}
    return [f"container {name} removed" for name in sorted(found - kept)], failed
