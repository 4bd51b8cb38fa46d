"""What a calibration tells a policy of memcached beforehand."""

from __future__ import annotations

from colocate.sim.service import LOADS, ServiceFigures, ServiceModel, Surroundings
from colocate.view import LoadPoint, Profile

_CALM = Surroundings()


def profile(figures: ServiceFigures, threads: int, percentile: float, cores: int) -> Profile:
    """The typical machine's, for memcached with so many threads on 1 to `cores` cores."""
    model = ServiceModel(figures, threads)
    return Profile(
        curves={count: _curve(model, count, percentile) for count in range(1, cores + 1)},
        cpu_us=figures.cpu_us.value,
        machine_sd=figures.machine_sd.value,
        beside_batch=figures.beside_batch.value,
        beside_sibling=figures.beside_sibling.value,
        shared_idle=figures.shared_idle.value,
    )


def _curve(model: ServiceModel, cores: int, percentile: float) -> tuple[LoadPoint, ...]:
    capacity_qps = model.state(0.0, cores, _CALM).capacity_qps
    points = []
    for load in LOADS:
        state = model.state(load * capacity_qps, cores, _CALM)
        latency_ms = state.latency.quantile(percentile / 100) / 1e3
        points.append(LoadPoint(load * capacity_qps, latency_ms, state.wait_us))
    return tuple(points)
