"""Can jobs share memcached's cores here at idle priority? Tried as a run does it, and taken back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from colocate.check import Check, FailedError, attempts
from colocate.host.engine import absence
from colocate.host.find import find, local_address
from colocate.host.sharing import CannotShareError, Sharing, choose_here
from colocate.host.sharing_probe import Probe
from colocate.host.sharing_proof import driver
from colocate.topology import read_topology

_RUN = "selftest"
_CURE = "jobs get exclusive cores here; see docs/architecture.md, Sharing memcached's cores"


class _Trial:
    """What one check leaves for the next."""

    def __init__(self, ip: str, port: int, pid: int | None) -> None:
        self.address = (ip, port)
        self.pid = pid
        self.stack = ExitStack()
        self.sharing: Sharing | None = None
        self.probe: Probe | None = None

    def hierarchy(self) -> str:
        """Where memcached and the jobs stand, and whether anything has an effect there."""
        ip, port = local_address(self.address[0]), self.address[1]
        self.address = (ip, port)
        self.pid = find(ip, port, pid=self.pid).pid
        runtime = "process" if absence() else "docker"
        try:
            self.sharing = Sharing(choose_here(self.pid, driver(runtime), _RUN))
        except CannotShareError as error:
            raise FailedError(str(error), _CURE) from error
        return f"{self.sharing.mechanism} ({runtime})"

    def mechanism(self) -> str:
        """Give a process of our own what the jobs will get."""
        assert self.sharing is not None  # noqa: S101 -- the check before it has passed
        try:
            self.sharing.open()
            self.probe = self.stack.enter_context(Probe(self.sharing))
        except CannotShareError as error:
            raise FailedError(str(error), "run it as root, or see the message") from error
        return f"{self.probe.how} on {self.probe.where}"

    def sleeper(self) -> str:
        """A sleeper in memcached's place."""
        assert self.probe is not None  # noqa: S101 -- the check before it has passed
        found = self.probe.sleeper(read_topology().cores)
        if not found.well:
            raise FailedError(str(found), _CURE)
        return str(found)

    def memcached(self) -> str:
        """Memcached itself."""
        assert self.probe is not None  # noqa: S101 -- the check before it has passed
        assert self.pid is not None  # noqa: S101 -- found by the first check
        found = self.probe.beside(self.pid, self.address, read_topology().cores)
        if not found.well:
            raise FailedError(str(found), "is another program busy on its cores?")
        return str(found)

    def undone(self) -> str:
        """Take everything back."""
        self.stack.close()
        left = self.sharing.close() if self.sharing is not None else []
        if left:
            raise FailedError("; ".join(left), "rmdir it once nobody is in it")
        return "nothing is left"


def sharing_checks(ip: str, port: int, pid: int | None) -> Iterator[Check]:
    """The checks of the component `sharing`; what follows a failed one is left out, but for the last."""
    trial = _Trial(ip, port, pid)
    steps = (
        ("hierarchy", trial.hierarchy),
        ("mechanism", trial.mechanism),
        ("sleeper", trial.sleeper),
        ("memcached", trial.memcached),
    )
    yield from attempts("sharing", steps, ("undone", trial.undone))
