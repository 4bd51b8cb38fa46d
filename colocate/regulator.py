"""What no policy may do: a policy proposes, the regulator disposes.

Each rule is a small function with one option in `Limits`. The defaults cost a good policy nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from colocate.errors import Terminated
from colocate.jobs import ENDED, MOST_THREADS
from colocate.policy import Choice, Plan, Policy, View, share_out

SAFE = "safe"  # the label of the policy that takes over


@dataclass(frozen=True, slots=True)
class Limits:
    """The regulator's options.

    Attributes:
        floor_cores: memcached never gets fewer.
        cpu_max_age_s: its CPU figure is stale when older.
        qps_max_age_s: its request rate is stale when older.
        latency_max_age_s: its latency is stale when older, once there has been one.
        latency_lost_s: a latency that has been stale for this long is not waited for any more: its source has ended.
        shrink_every_s: least time between two shrinkings, and after a growth.
        rise_s: how far `View.rising` looks back: memcached gets no core fewer while its load rises.
        deadline_s: longest that a decision may take.
        strikes: failures of the policy after which the safe one takes over.
    """

    floor_cores: int = 1
    cpu_max_age_s: float = 1.0
    qps_max_age_s: float = 2.0
    latency_max_age_s: float = 15.0
    latency_lost_s: float = 60.0
    shrink_every_s: float = 0.5
    rise_s: float = 0.5
    deadline_s: float = 0.25
    strikes: int = 3


@dataclass(frozen=True, slots=True)
class Intervention:
    """One change that the regulator made to what a policy wanted; `rule` is the rule's name."""

    rule: str
    reason: str


class OverrunError(BaseException):
    """A decision took longer than its deadline; no `except Exception` of a policy's is to catch it."""


Deadline = Callable[[float], AbstractContextManager[None]]


def safe_plan(view: View, floor_cores: int = 1) -> Plan:
    """The safe set: a core for each of memcached's threads (never fewer than it has), the rest to the jobs."""
    service = min(view.total_cores, max(floor_cores, view.service.threads, len(view.service.cores)))
    return Plan(service, share_out(view.jobs.values(), view.total_cores - service), reason="safe set")


class Safe(Policy):
    """The built-in policy that takes over when another has failed too often."""

    def decide(self, view: View) -> Plan:
        """A core for each of memcached's threads, but one for the jobs where there are two: the run must end."""
        service = min(max(1, view.service.threads), max(1, view.total_cores - 1))
        return Plan(service, share_out(view.jobs.values(), view.total_cores - service), reason="safe policy")


class Regulator:
    """Asks a policy and makes its plan safe.

    Args:
        policy: the policy.
        limits: the options.
        deadline: the host's time limit: a context manager that raises `OverrunError` in what it encloses.
        label: the policy's, for log and records; its class's name where none is given.

    Attributes:
        past_faults: what is to be said of policies that were swapped for another.
    """

    def __init__(self, policy: Policy, limits: Limits, deadline: Deadline, label: str = "") -> None:
        self.policy = policy
        self.limits = limits
        self.label = label or type(policy).__name__
        self.strikes = 0
        self.first_fault = ""  # of the policy
        self.past_faults: tuple[str, ...] = ()
        self.counts: Counter[str] = Counter()
        self._deadline = deadline
        self._accepted = Plan(0)
        self._held = 0  # memcached's cores, before the plan at hand
        self._latency_s = float("-inf")  # when it was last fresh
        self._changed_s = float("-inf")

    @property
    def acting(self) -> str:
        """Who decides: the policy's label, or `safe` since the safe policy took over."""
        return SAFE if isinstance(self.policy, Safe) else self.label

    @property
    def fault(self) -> str:
        """How often the policy failed, how that began, and who decided then; empty if it did not."""
        if not self.strikes:
            return ""
        after = ", then the safe policy took over" if isinstance(self.policy, Safe) else ""
        return f"the policy failed {self.strikes} times{after}; at first: {self.first_fault}"

    def swap(self, choice: Choice) -> None:
        """Ask another policy from now on. It starts without a strike; the accepted plan and the limits' clocks stay."""
        if self.fault:
            self.past_faults += (f"{self.label}: {self.fault}",)
        self.policy, self.label = choice.policy, choice.label
        self.strikes, self.first_fault = 0, ""

    def plan(self, view: View, held: int | None = None) -> tuple[Plan, list[Intervention]]:
        """The plan that holds now, and what was changed of the policy's.

        `held` is how many cores memcached has by this regulator's plans; None where it has them in the view, too.
        """
        interventions: list[Intervention] = []
        self._held = min(view.total_cores, len(view.service.cores) if held is None else held)

        def intervene(rule: str, reason: str) -> None:
            self.counts[rule] += 1
            interventions.append(Intervention(rule, reason))

        try:
            with self._deadline(self.limits.deadline_s):
                plan, nonsense = self._asked(view)
        except (KeyboardInterrupt, Terminated):  # not the policy's
            raise
        except BaseException as error:  # the deadline's; or an error that cannot even be shown
            nonsense = f"{type(error).__name__}: {error}" if isinstance(error, OverrunError) else type(error).__name__
        if nonsense:
            self.first_fault = self.first_fault or nonsense
            intervene("strike", nonsense)
            plan = self._strike(view, intervene)
        elif impossible := self._impossible(plan, view):
            intervene("impossible", impossible)
            fits = 0 < self._accepted.service <= view.total_cores  # a core may have been unplugged since
            plan = self._accepted if fits else safe_plan(view, self.limits.floor_cores)
        for rule in (self._unshared, self._floored, self._fresh_enough, self._unhurried, self._risen):
            if changed := rule(plan, view):
                plan, reason = changed
                intervene(rule.__name__.strip("_"), reason)
        plan = fitted(plan, view)
        if plan.service != self._held:
            self._changed_s = view.time_s
        self._accepted = plan
        return plan, interventions

    def _asked(self, view: View) -> tuple[Plan, str]:
        """What the policy says, and why that is no plan; whatever of it is looked at may be a program of its own."""
        try:
            plan = self.policy.decide(view)
            return plan, malformed(plan)
        except (KeyboardInterrupt, Terminated, OverrunError):
            raise
        except BaseException as error:  # whatever a policy raises (sys.exit, too) costs a strike, never the service
            return Plan(0), f"{type(error).__name__}: {error}"

    def _strike(self, view: View, intervene: Callable[[str, str], None]) -> Plan:
        self.strikes += 1
        if self.strikes == self.limits.strikes and not isinstance(self.policy, Safe):
            failed = type(self.policy).__name__
            intervene("fallback", f"{failed} failed {self.strikes} times, the safe policy takes over")
            self.policy = Safe()
        return safe_plan(view, self.limits.floor_cores)

    def _impossible(self, plan: Plan, view: View) -> str:
        """Why a well-formed plan cannot be carried out; empty if it can."""
        jobs = view.jobs
        if not (jobs.keys() >= plan.jobs.keys() and jobs.keys() >= plan.share and jobs.keys() >= plan.threads.keys()):
            return f"no job {min((plan.jobs.keys() | plan.share | plan.threads.keys()) - jobs.keys())!r}"
        wanted = plan.service + sum(plan.jobs.values())
        if wanted > view.total_cores:  # what is wanted for a job that has ended does not count
            wanted -= sum(n for job, n in plan.jobs.items() if jobs[job].state in ENDED)
        if wanted > view.total_cores:
            return f"{wanted} cores wanted, there are {view.total_cores}"
        return "" if plan.service else "no core for memcached"

    def _unshared(self, plan: Plan, view: View) -> tuple[Plan, str] | None:
        """Sharing needs a host that has proved idle priority where the two compete."""
        if not plan.share or view.can_share:
            return None
        return replace(plan, share=frozenset()), "this host cannot share memcached's cores: exclusive cores only"

    def _floored(self, plan: Plan, view: View) -> tuple[Plan, str] | None:
        """Memcached never gets less than its floor."""
        floor = min(self.limits.floor_cores, view.total_cores)
        if plan.service >= floor:
            return None
        return replace(plan, service=floor), f"{plan.service} cores are under the floor of {floor}"

    def _fresh_enough(self, plan: Plan, view: View) -> tuple[Plan, str] | None:
        """On stale or missing signals only moves in memcached's favour."""
        service = view.service
        if service.latency_ms.fresh(self.limits.latency_max_age_s):
            self._latency_s = view.time_s
        more = plan.share - self._accepted.share
        if not self._held:  # at the beginning it has all cores
            known = service.cpu_cores.fresh(self.limits.cpu_max_age_s) or service.qps.fresh(self.limits.qps_max_age_s)
            if known or plan.service == view.total_cores:
                return None
            return replace(plan, service=view.total_cores), "nothing is known of its load: memcached keeps all cores"
        if plan.service >= self._held and not more:
            return None
        expected = view.time_s - self._latency_s < self.limits.latency_lost_s
        stale = [
            name
            for name, signal, max_age_s in (
                ("CPU", service.cpu_cores, self.limits.cpu_max_age_s),
                ("request rate", service.qps, self.limits.qps_max_age_s),
                *([("latency", service.latency_ms, self.limits.latency_max_age_s)] if expected else []),
            )
            if not signal.fresh(max_age_s)
        ]
        if not stale:
            return None
        kept = replace(plan, service=max(plan.service, self._held), share=plan.share - more)
        return kept, f"no fresh {' and '.join(stale)}: memcached keeps its cores"

    def _unhurried(self, plan: Plan, view: View) -> tuple[Plan, str] | None:
        """Memcached shrinks no more often than the limit, and not right after it grew."""
        if plan.service >= self._held or view.time_s - self._changed_s >= self.limits.shrink_every_s:
            return None
        return replace(plan, service=self._held), f"shrinks at most every {self.limits.shrink_every_s:g} s"

    def _risen(self, plan: Plan, view: View) -> tuple[Plan, str] | None:
        """Memcached gets no core fewer while its load rises."""
        if plan.service >= self._held or not view.rising(self.limits.rise_s):
            return None
        return replace(plan, service=self._held), "its load rises: memcached keeps its cores"


def malformed(plan: object) -> str:
    """Why this is no plan at all; empty if it is one."""
    if not isinstance(plan, Plan):
        return f"decide() returned {type(plan).__name__}, not a Plan"
    if not (isinstance(plan.jobs, Mapping) and isinstance(plan.share, Set) and isinstance(plan.threads, Mapping)):
        return "jobs or threads is no mapping, or share no set"
    if not isinstance(plan.reason, str):
        return f"{plan.reason!r} is no reason: it is no text"
    for name in (*plan.jobs, *plan.share, *plan.threads):
        if type(name) is not str and not isinstance(name, str):
            return f"{name!r} is no job's name"
    for name, count in (("memcached", plan.service), *plan.jobs.items()):
        if type(count) is int and count >= 0:  # the usual case, quickly
            continue
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            return f"{count!r} is no core count for {name}"
    for name, count in plan.threads.items():
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_THREADS:
            return f"{count!r} is no thread count for {name}"
    return ""


def fitted(plan: Plan, view: View) -> Plan:
    """The plan with every job that has not ended, the last ones narrowed where memcached got more than was planned.

    A job that the plan leaves out keeps what it has of its own, as far as there is something left.
    """
    left = view.total_cores - plan.service
    if sum(plan.jobs.values()) <= left and all((j.state in ENDED) != (n in plan.jobs) for n, j in view.jobs.items()):
        # A copy, as the policy may go on to change its own; by position, since this is done at every tick.
        return Plan(plan.service, dict(plan.jobs), plan.share, plan.reason, plan.threads, plan.spread)
    wanted = dict(plan.jobs)
    for name, job in view.jobs.items():
        if job.state in ENDED:
            wanted.pop(name, None)
        elif name not in wanted:
            wanted[name] = len(job.cores - view.service.cores)
    for name, count in wanted.items():
        wanted[name] = count = min(count, left)
        left -= count
    return replace(plan, jobs=wanted)
