"""What a calibration tells a policy of memcached beforehand."""

from __future__ import annotations

from colocate.sim.service import ServiceFigures, ServiceModel, Surroundings
from colocate.view import Profile, Slo

_HALVINGS = 30
_CALM = Surroundings()


def profile(figures: ServiceFigures, threads: int, slo: Slo, cores: int) -> Profile:
    """The typical machine's, for memcached with so many threads on 1 to `cores` cores."""
    model = ServiceModel(figures, threads)
    return Profile(
        holds_qps={count: _holds_qps(model, count, slo) for count in range(1, cores + 1)},
        cpu_us=figures.cpu_us.value,
        machine_sd=figures.machine_sd.value,
        beside_batch=figures.beside_batch.value,
        beside_sibling=figures.beside_sibling.value,
        shared_idle=figures.shared_idle.value,
    )


def _holds_qps(model: ServiceModel, cores: int, slo: Slo) -> float:
    """The highest load at which the percentile is within the SLO; 0 if there is none."""
    limit_us, share = 1e3 * slo.latency_ms, slo.percentile / 100
    low, high = 0.0, model.state(0.0, cores, _CALM).capacity_qps
    if model.state(high, cores, _CALM).latency.quantile(share) <= limit_us:
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        held = model.state(middle, cores, _CALM).latency.quantile(share) <= limit_us
        low, high = (middle, high) if held else (low, middle)
    return low
