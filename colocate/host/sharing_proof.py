"""Does the mechanism work here? Shown before the first job starts, in well under two seconds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace

from colocate.cores import CoreSet
from colocate.host.sharing import CannotShareError, Driver, Sharing, choose_here
from colocate.host.sharing_probe import Probe, Service, Sleeper


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the probe found.

    Attributes:
        works: whether jobs may share memcached's cores.
        why: the mechanism, or what is in the way.
        sleeper: what the sleeper met; None where it did not come to that.
        service: what memcached met; None where it did not come to that.
    """

    works: bool
    why: str
    sleeper: Sleeper | None = None
    service: Service | None = None

    def __str__(self) -> str:
        words = [f"{'can' if self.works else 'cannot'} share memcached's cores: {self.why}"]
        if self.sleeper:
            words.append(str(self.sleeper))
        if self.service:
            words.append(str(self.service))
        return "; ".join(words)


def arrange(
    service_pid: int, address: tuple[str, int], runtime: str, run_id: str, cores: CoreSet,
    remember: Callable[[tuple[str, ...]], None],
) -> tuple[Sharing | None, Verdict]:  # fmt: skip
    """Find the mechanism, make what it needs, and prove it.

    Args:
        service_pid: memcached.
        address: where it listens.
        runtime: `docker` or `process`.
        run_id: stands in the names of what is made.
        cores: those that the run manages.
        remember: called with the control groups to be removed at the end, before any of them is made.

    Returns:
        what gives jobs idle priority, for the caller to close, or None where that does not work; and the proof.

    Raises:
        UserError: the Docker Engine cannot be used, or nothing can be remembered.
    """
    sharing = None
    try:
        sharing = Sharing(choose_here(service_pid, driver(runtime), run_id))
        remember(tuple(str(path) for path in sharing.mechanism.directories()))
        sharing.open()
        verdict = prove(sharing, service_pid, address, cores)
    except CannotShareError as error:
        verdict = Verdict(works=False, why=str(error))
    except BaseException:
        if sharing is not None:
            sharing.close()
        raise
    if sharing is not None and not verdict.works:
        sharing.close()
        sharing = None
    return sharing, verdict


def driver(runtime: str) -> Driver:
    """Who makes the control groups of a runtime's jobs.

    Raises:
        CannotShareError: nobody whom we know.
        UserError: the Docker Engine cannot be used.
    """
    if runtime == "process":
        return "process"
    from colocate.host.engine import cgroup_driver  # Docker's client takes long to load

    match cgroup_driver():
        case "cgroupfs":
            return "cgroupfs"
        case "systemd":
            return "systemd"
        case other:
            raise CannotShareError(f"the Docker Engine has no control groups for us (driver {other})")


def prove(sharing: Sharing, service_pid: int, address: tuple[str, int], cores: CoreSet) -> Verdict:
    """Try it; blocks for about half a second.

    Args:
        sharing: opened.
        service_pid: memcached.
        address: where it listens; it is asked for its version now and then, so that there is something to see.
        cores: those that the run manages.
    """
    try:
        with Probe(sharing) as probe:
            verdict = Verdict(works=False, why=f"{probe.how} on {probe.where}; {sharing.mechanism}")
            sleeper = probe.sleeper(cores)
            verdict = replace(verdict, sleeper=sleeper)
            if not sleeper.well:
                return replace(verdict, why=f"{verdict.why}; it has no effect")
            service = probe.beside(service_pid, address, cores)
            why = verdict.why if service.well else f"{verdict.why}; memcached suffers"
            return replace(verdict, works=service.well, why=why, service=service)
    except (CannotShareError, OSError, subprocess.SubprocessError) as error:
        return Verdict(works=False, why=str(error))
