"""What the rights of this user allow, and what they do not, with the cure: the set-ups of docs/operations.md.

A right that is missing is no failure: jobs as plain processes need no Docker, exclusive cores no control group.
"""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from colocate.check import Check, FailedError, attempt
from colocate.errors import UserError
from colocate.host.cgroup import directory, find_place
from colocate.host.engine import CALL_TIMEOUT_S, client_from_env, connect
from colocate.host.find import find, local_address
from colocate.host.memcached import ServiceAffinity

_SYS_NICE = 23  # capabilities(7), its number
_NICE = -15
_GROUPS = ("cpuset", "freezer", "cpu")
_SLEEP = "import time; time.sleep(60)"


def privilege_checks(ip: str, port: int, pid: int | None) -> Iterator[Check]:
    """The checks of the component `privileges`: each passes, and has a cure where something is not permitted."""
    steps = (
        ("user", who),
        ("memcached", lambda: _pin(ip, port, pid)),
        ("containers", _containers),
        ("fast path", _fast_path),
        ("processes", _processes),
        ("priority", _priority),
        ("guard", _guard),
    )
    for name, action in steps:
        yield replace(attempt("privileges", name, action), ok=True)


def who() -> str:
    """Who runs this, and what makes that user more than an ordinary one."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    rights = ["with CAP_SYS_NICE"] if _may_nice() else []
    if uid == 0:
        return "root" if rights else "root without CAP_SYS_NICE"
    try:
        if grp.getgrnam("docker").gr_gid in os.getgroups():
            rights.append("in the group docker, which is as good as root")
    except KeyError:
        pass
    return ", ".join((f"user {name}", *rights))


def _may_nice() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _SYS_NICE & 1)
    return False


def _pin(ip: str, port: int, pid: int | None) -> str:
    try:
        process = find(local_address(ip), port, pid=pid)
    except UserError as error:
        raise FailedError(f"it is not tried to pin memcached: {error.what}", error.cure) from error
    return f"can be pinned {ServiceAffinity(process).may_pin()}"


def _containers() -> str:
    try:
        connect(client_from_env, CALL_TIMEOUT_S).close()
    except UserError as error:
        raise FailedError(f"no jobs as containers: {error.what}", error.cure) from error
    return "jobs can be containers"


def _fast_path() -> str:
    place = find_place("self", "cpuset")
    if place is None or not os.access(place.mount, os.W_OK):
        raise FailedError(
            "containers' cores and pauses by the Docker API only, no idle priority for them: their control groups are"
            " not ours to write",
            "run as root",
        )
    return "containers' control groups can be written"


def _processes() -> str:
    places = {name: directory("self", name) for name in _GROUPS}
    ours = [name for name, place in places.items() if place and os.access(place, os.W_OK)]
    if not ours:
        raise FailedError(
            "plain processes get no control groups: affinity of their threads, SIGSTOP, SCHED_IDLE instead",
            "run as root, or in a group that is delegated to you (systemd: Delegate=yes)",
        )
    return f"plain processes get control groups of their own ({', '.join(ours)})"


def _priority() -> str:
    with subprocess.Popen([sys.executable, "-S", "-c", _SLEEP]) as child:
        try:
            os.setpriority(os.PRIO_PROCESS, child.pid, _NICE)
        except PermissionError as error:
            raise FailedError(
                "the loop runs at an ordinary priority: late where the machine is full",
                "run as root or with CAP_SYS_NICE",
            ) from error
        finally:
            child.kill()
    return f"the loop runs at nice {_NICE}"


def _guard() -> str:
    os.close(os.pidfd_open(os.getpid()))
    return "a guard can wait for the end of its controller"
