"""What memcached needs so that its SLO holds: learned while it runs, started from a calibration where there is one.

Three things are learned. The CPU seconds that a request costs, which turn the CPU time of the last tick into the load
of the last tick, long before `stats` tells it. And, for each setting, two brackets: the highest load and the longest
run-queue delay with which the SLO has held, the lowest and the shortest with which it has not. What lies in the upper
half of a bracket is not tried; what lies in the lower half is, and either way the bracket gets smaller, so that few
trials are ever made. Settings have brackets of their own, since threads that outnumber cores queue behind each other.

A setting is what the policy can give memcached: a number of cores, and whether jobs share them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean

from colocate.view import View

_FULL = 0.97  # share of its cores' time at which more load would not show any more
_STEADY = 0.1  # spread of the request rate, as a share of it, under which CPU and rate are of one load
_SMOOTH = 0.05  # weight of a new sample of what a request costs
_STEP_DOWN = 1.05  # a load must be so far under the limit of a lesser setting: the load of one tick strays
_DOUBT, _DOUBT_S = 4.0, 30.0  # failing so far under what has held is believed so long at first, then twice as long
_APART = 1.02  # the two ends of a bracket
_BELIEF_SD = 1.5  # how far a machine may be from the typical one at first, in standard deviations
_UNSURE = (0.5, 1.0)  # without a calibration: what a core holds, as shares of what its CPU could serve
_RELAX_S, _RELAX = 60.0, 1.02  # trouble of the past counts less and less
_FRESH_S, _TOLD_S = 1.0, 2.0  # older figures of the kernel and the latency, and of `stats`, are not gone by
_RISE_S = 0.3  # after this a new load is known
_TELLS = 1.1  # a delay tells something from this factor above the calmest on
_IDLE = 0.05  # cores of CPU under which what memcached uses says little of what a request costs
_UNTOLD_S = 20e-6  # stands for the cost of a request while it is not known: only shares of a core count then
_WAIT_BELIEF = 1.3  # factor by which the run-queue delay that means trouble may differ from the calibration's


@dataclass(frozen=True, slots=True)
class Setting:
    """What memcached is given: cores, and how many of them jobs may use at idle priority.

    Of more cores than it has threads for the further ones stay idle, so that less runs beside it.
    """

    cores: int
    shared: int = 0

    def spares(self, other: Setting) -> bool:
        """Whether the jobs have more of the machine in this one: fewer cores, or as many and more of them shared."""
        return self.cores < other.cores or (self.cores == other.cores and self.shared > other.shared)


@dataclass(slots=True)
class _Bracket:
    """What has held, and what has not."""

    low: float
    high: float

    @property
    def limit(self) -> float:
        """Half way, as factors go."""
        return math.sqrt(self.low * self.high)

    def held(self, value: float) -> None:
        self.low = max(self.low, value)
        self.high = max(self.high, self.low * _APART)

    def failed(self, value: float) -> None:
        self.high = min(self.high, value)
        self.low = min(self.low, self.high / _APART)


@dataclass(slots=True)
class _Known:
    """What is known of one setting."""

    load_qps: _Bracket
    wait_us: _Bracket
    failed_s: float  # when the high ends were last touched
    calm_us: float | None = None  # the shortest run-queue delay seen while the SLO was not broken
    doubted: _Bracket | None = None  # of the load: what was known before it failed far under it
    doubt_s: float = _DOUBT_S

    def failed(self, load_qps: float, now_s: float) -> None:
        """It has not held under this load; a moment of wrong figures must not keep the jobs waiting for hours."""
        if load_qps < self.load_qps.low / _DOUBT and self.doubted is None:
            self.doubted = replace(self.load_qps)
        self.load_qps.failed(load_qps)
        self.failed_s = now_s

    def reconsider(self, now_s: float) -> None:
        """Give what has failed against all expectation another chance."""
        if self.doubted is not None and now_s - self.failed_s > self.doubt_s:
            self.load_qps, self.doubted = self.doubted, None
            self.doubt_s *= 2

    def relax(self, now_s: float) -> None:
        """Trouble of the past counts less and less."""
        if now_s - self.failed_s > _RELAX_S:
            self.failed_s = now_s
            self.load_qps.high *= _RELAX
            self.wait_us.high *= _RELAX

    def tells(self, waits_us: list[float]) -> bool:
        """Whether memcached waits more than in its calmest hours, as far as that is measured."""
        return not waits_us or self.calm_us is None or fmean(waits_us) > _TELLS * self.calm_us


@dataclass(slots=True)
class _Failure:
    """Trouble whose load is not known yet: what shows it is older than the load, or younger."""

    setting: Setting
    until_s: float
    load_qps: float


class Sizing:
    """Watches one memcached and chooses what it is given.

    Args:
        caution: share of the SLO's latency up to which a setting counts as one that holds.
        glance_s: seconds of run-queue delay that are looked at together; one tick says little.
        settle_s: seconds after a change of setting or load from which the latency tells of the new one.
        hold_s: seconds for which a lesser setting must have sufficed before it is taken.

    Attributes:
        load_qps: the load now; infinite while memcached has no time left to show more, NaN while unknown.
        trouble: what shows that memcached suffers in its present setting; empty when nothing does.
    """

    def __init__(
        self, *, caution: float = 0.9, glance_s: float = 0.2, settle_s: float = 3.0, hold_s: float = 0.5
    ) -> None:
        self.load_qps = math.nan
        self.trouble = ""
        self._caution = caution
        self._glance_s = glance_s
        self._settle_s = settle_s
        self._hold_s = hold_s
        self._cost_s: float | None = None  # CPU seconds a request
        self._costs = 0  # samples of it
        self._known: dict[Setting, _Known] = {}
        self._chosen = self._setting = Setting(0)
        self._enough_s = 0.0  # when less than the present setting was not enough
        self._since_s = 0.0  # of the setting
        self._loads: deque[tuple[float, float]] = deque()  # of the last seconds
        self._failure: _Failure | None = None

    def choose(self, view: View, ladder: Iterable[Setting], last_resort: Setting) -> Setting:
        """The first setting of a ladder in which the SLO can be expected to hold; called once a tick.

        One in which the jobs have more than now is taken when it has sufficed for `hold_s` and the load does not rise,
        any other at once.

        Args:
            view: the present.
            ladder: settings, what leaves the jobs most first.
            last_resort: taken where none holds, or nothing is known yet.
        """
        cores = len(view.service.cores) or last_resort.cores
        if cores == core_a_thread(view) < self._chosen.cores:
            cores = self._chosen.cores  # the further ones are idle
        now = Setting(cores, min(cores, self._chosen.shared) if view.can_share else 0)
        self._look(view, now)
        wanted = last_resort
        if math.isfinite(self.load_qps):
            wanted = next((setting for setting in ladder if self._holds(view, setting)), last_resort)
        if wanted.spares(now) and (view.time_s - self._enough_s < self._hold_s or view.rising()):
            wanted = now
        else:  # a step down is one in `hold_s`, too
            self._enough_s = view.time_s
        self._chosen = wanted
        return wanted

    def _look(self, view: View, setting: Setting) -> None:
        """Take in one tick during which memcached had this setting."""
        now_s = view.time_s
        if setting != self._setting:
            self._setting, self._since_s = setting, now_s
        self._learn_cost(view)
        self.load_qps = self._load(view)
        self._loads.append((now_s, self.load_qps))
        while self._loads[0][0] < now_s - self._settle_s:
            self._loads.popleft()
        known, settled = self._about(view, setting), self._settled(now_s)
        self.trouble = self._trouble(view, known, settled=settled)
        self._learn(view, known, settled=settled)

    def _learn(self, view: View, known: _Known, *, settled: bool) -> None:
        now_s, load_qps = view.time_s, self.load_qps
        if math.isinf(load_qps) and self._cost_s:  # the least that fills its cores; what was told last may be older
            load_qps = _FULL * _useful(view, self._setting.cores) / self._cost_s
        if self.trouble and self._failure is None:
            recent = (load for time_s, load in self._loads if time_s > now_s - _RISE_S and math.isfinite(load))
            self._failure = _Failure(self._setting, now_s + _RISE_S, max(recent, default=1.0))
        if (failure := self._failure) is not None and math.isfinite(load_qps):
            failure.load_qps = max(failure.load_qps, load_qps)
            if now_s >= failure.until_s:
                self._failure = None
                self._about(view, failure.setting).failed(failure.load_qps, now_s)
        known.relax(now_s)
        for each in self._known.values():
            each.reconsider(now_s)
        if settled and self._failure is None and 0 < load_qps < math.inf:
            self._learn_waits(view, known)

    def _learn_waits(self, view: View, known: _Known) -> None:
        """Take in a latency that tells of the present load and setting, and the run-queue delay that goes with it."""
        waits_us = view.recent("wait_us", self._settle_s)
        waited_us = fmean(waits_us) if waits_us else None
        latency = view.service.latency_ms
        now_ms = latency.value if latency.fresh(_FRESH_S) else None
        if waited_us is not None and (now_ms is None or now_ms <= view.slo.latency_ms):
            known.calm_us = min(known.calm_us or waited_us, waited_us)
        if now_ms is None:
            return
        latencies_ms = view.recent("latency_ms", self._settle_s) or [now_ms]
        if max(now_ms, fmean(latencies_ms)) <= self._cautious(view, self._setting) * view.slo.latency_ms:
            if latency.samples < view.slo.least_samples:  # fine for want of requests
                return
            known.load_qps.held(self.load_qps)
            if waited_us is not None:
                known.wait_us.held(waited_us)
        elif waited_us is not None and min(latencies_ms) > view.slo.latency_ms and known.tells(waits_us):
            known.wait_us.failed(waited_us)

    def _holds(self, view: View, setting: Setting) -> bool:
        """Whether the SLO can be expected to hold under the present load in this setting."""
        if math.isnan(self.load_qps):
            return False
        if setting == self._setting and self.trouble:
            return False
        margin = _STEP_DOWN if setting.cores < self._setting.cores or setting.shared > self._setting.shared else 1.0
        return self.load_qps * margin <= self._about(view, setting).load_qps.limit

    def reason(self) -> str:
        """Why, in a few words."""
        if self.trouble:
            return self.trouble
        if math.isnan(self.load_qps):
            return "load unknown"
        if self._cost_s is None:
            return "cost of a request unknown"
        return "no time left" if math.isinf(self.load_qps) else f"{self.load_qps / 1e3:.1f}k requests a second"

    def _learn_cost(self, view: View) -> None:
        if self._cost_s is None and view.profile is not None:
            self._cost_s = 1e-6 * view.profile.cpu_us
        told, used = view.recent("qps", 1.0), view.recent("cpu_cores", 1.0)
        if len(told) <= 2 or not used or not _IDLE <= (mean := fmean(used)) < _FULL * len(view.service.cores):
            return
        qps = fmean(told)
        if qps > 0 and math.sqrt(fmean([(each - qps) ** 2 for each in told])) < _STEADY * qps:
            self._take_cost(mean / qps, known_before=view.profile is not None)

    def _take_cost(self, cost_s: float, *, known_before: bool) -> None:
        """A new sample; what was believed of loads before the cost was known was a share of a core, and stays one."""
        self._costs += 1
        before_s = self._cost_s
        weight = _SMOOTH if known_before else max(_SMOOTH, 1.0 / self._costs)
        self._cost_s = cost_s if before_s is None else before_s + weight * (cost_s - before_s)
        if before_s is not None and not known_before:
            for known in self._known.values():
                known.load_qps.low *= before_s / self._cost_s
                known.load_qps.high *= before_s / self._cost_s

    def _load(self, view: View) -> float:
        used, told = view.service.cpu_cores, view.service.qps
        if used.value is None or not used.fresh(_FRESH_S) or not view.service.cores:
            return told.value if told.value is not None and told.fresh(_TOLD_S) else math.nan
        if used.value >= _FULL * _useful(view, len(view.service.cores)):
            return math.inf
        return used.value / (self._cost_s or _UNTOLD_S)

    def _trouble(self, view: View, known: _Known, *, settled: bool) -> str:
        service, limit_ms = view.service, view.slo.latency_ms
        if math.isnan(self.load_qps):
            return ""
        if math.isinf(self.load_qps):
            return f"uses {service.cpu_cores.value:.2f} of {len(service.cores)} cores"
        if view.time_s - self._since_s > self._glance_s and service.wait_us.fresh(self._glance_s):
            waits_us = view.recent("wait_us", self._glance_s)
            if len(waits_us) > 1 and (waited_us := fmean(waits_us)) > known.wait_us.limit:
                return f"waits {waited_us:.0f} us a slice"
        latency = service.latency_ms
        if settled and latency.fresh(_FRESH_S) and (latency.value or 0.0) > limit_ms:
            # A percentile of few requests strays far: the last ones must agree with each other, and with the waiting.
            least_ms = min(view.recent("latency_ms", self._settle_s), default=0.0)
            if least_ms > limit_ms and known.tells(view.recent("wait_us", self._settle_s)):
                return f"p{view.slo.percentile:g} is {least_ms:.2f} ms"
        return ""

    def _settled(self, now_s: float) -> bool:
        """Whether neither the setting nor the load has changed for a while."""
        if now_s - self._since_s < self._settle_s or now_s - self._loads[0][0] < 0.9 * self._settle_s:
            return False
        loads = [load for _, load in self._loads]
        low, high = min(loads), max(loads)
        return math.isfinite(high) and high - low < 4 * _STEADY * high

    def _about(self, view: View, setting: Setting) -> _Known:
        known = self._known.get(setting)
        if known is None:
            known = _Known(self._load_belief(view, setting), self._wait_belief(view, setting), view.time_s)
            if self._cost_s is not None:
                self._known[setting] = known
        return known

    def _load_belief(self, view: View, setting: Setting) -> _Bracket:
        """What is thought of a setting that has not been tried."""
        profile = view.profile
        if profile is None:
            cores_qps = _useful(view, setting.cores) / (self._cost_s or _UNTOLD_S)
            return _Bracket(_UNSURE[0] * cores_qps, _UNSURE[1] * cores_qps)
        edge = profile.edge(setting.cores, self._limit_ms(view, setting))
        spread = math.exp(_BELIEF_SD * profile.machine_sd)
        return _Bracket(edge.qps / spread, edge.qps * spread)

    def _wait_belief(self, view: View, setting: Setting) -> _Bracket:
        if view.profile is None:
            return _Bracket(1.0, math.inf)
        calm_us = min(point.wait_us for point in view.profile.curve(setting.cores))
        edge_us = view.profile.edge(setting.cores, self._limit_ms(view, setting)).wait_us
        return _Bracket(max(edge_us / _WAIT_BELIEF, _TELLS * calm_us), max(edge_us, _TELLS * calm_us) * _WAIT_BELIEF)

    def _limit_ms(self, view: View, setting: Setting) -> float:
        """The latency that the calibration must promise with nothing beside, so that there is room for what is."""
        limit_ms = self._cautious(view, setting) * view.slo.latency_ms
        if view.profile is None:
            return limit_ms
        room = (view.total_cores - setting.cores) / max(1, view.total_cores - 1)
        beside = view.profile.beside_batch * room + view.profile.shared_idle * setting.shared / setting.cores
        return limit_ms / (1.0 + beside)

    def _cautious(self, view: View, setting: Setting) -> float:
        """With a core for each thread there is nothing better to be had cheaply: there the SLO itself is the limit."""
        return self._caution if setting.cores < view.service.threads or setting.shared else 1.0


def core_a_thread(view: View) -> int:
    """As many cores as memcached can use; all but one while its threads are not known. Never under its floor."""
    wanted = view.service.threads or view.total_cores - 1
    return min(view.total_cores, max(1, wanted, view.service.min_cores))


def last_resort(view: View, *, share: bool) -> Setting:
    """What to take where nothing is known to hold: a core a thread.

    Where that is every core it leaves the jobs something all the same, by sharing or by one core less: an SLO that
    breaks anyway is no reason for a run without end.
    """
    most = core_a_thread(view)
    if share and most == view.total_cores:
        return Setting(most, most)
    return Setting(max(1, min(most, view.total_cores - 1)))


def _useful(view: View, cores: int) -> int:
    """How many of its cores memcached can use; all while its threads are not known."""
    return min(cores, view.service.threads or cores)
