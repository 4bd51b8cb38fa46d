"""Puts back what a run that was killed has left behind."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from colocate.errors import UserError
from colocate.eventlog import SCHEDULER, Event, parse
from colocate.host.engine import (
    CALL_TIMEOUT_S,
    LONG_TIMEOUT_S,
    client_from_env,
    connect,
    leftover_runs,
    remove_leftovers,
)
from colocate.host.memcached import PinError, restore_from
from colocate.host.proctree import kill_leftovers
from colocate.host.sharing import remove_groups
from colocate.host.state import Saved


def restore(saved: Saved) -> tuple[list[str], list[str]]:
    """Give memcached its affinity back, remove the run's jobs and control groups, and close its event log.

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
    if saved.runtime == "process":
        more_done, more_failed = kill_leftovers(saved.run)
    else:
        more_done, more_failed = remove_containers(saved.run)
    done += more_done
    failed += more_failed
    there = [Path(path) for path in saved.groups if Path(path).is_dir()]
    failed += remove_groups(there)
    removed = [path for path in there if not path.exists()]
    done += [f"control group {removed[0].name} removed"] if removed else []
    if not failed and _close_log(Path(saved.log)):
        done.append(f"{saved.log} closed")
    return done, failed


def _close_log(path: Path) -> bool:
    """Write the last lines that a killed run could not; a torn line before them goes. Whether there was a need."""
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        events = parse(whole).events
        if not events or (events[-1].event, events[-1].job) == ("end", SCHEDULER):
            return False
        now = max(datetime.now(), events[-1].time)
        last = [Event(now, "custom", SCHEDULER, comment="killed, put back"), Event(now, "end", SCHEDULER)]
        path.write_text(whole + "".join(f"{event}\n" for event in last), encoding="utf-8")
    except OSError:  # the log has been moved away, and needs no end
        return False
    return True


def remove_containers(run: str | None) -> tuple[list[str], list[str]]:
    """Remove the containers of one run, or of every run of ours.

    Returns:
        what was removed, and what could not be; one line each.
    """
    try:
        client = connect(client_from_env, CALL_TIMEOUT_S)  # an engine that hangs is soon told
    except UserError as error:
        return [], [f"containers are not looked for: {error}"]
    try:
        found = {name for id_, names in leftover_runs(client).items() if run in {None, id_} for name in names}
        client.api.timeout = int(LONG_TIMEOUT_S)  # a removal waits for disks
        failed = remove_leftovers(client, run) if found else []
    except UserError as error:
        return [], [str(error)]
    finally:
        client.close()
    kept = {line.partition(":")[0] for line in failed}
    return [f"container {name} removed" for name in sorted(found - kept)], failed
