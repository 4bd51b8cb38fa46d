"""Give memcached the fewest cores with which its SLO holds, and all others to the jobs, whole cores only.

Nothing is tuned by hand: `colocate.sizing` learns while it runs what a request costs, which load and which run-queue
delay each core count bears, and starts from a calibration where there is one. Growth comes at the tick that shows the
load, by memcached's own CPU time; shrinking after the need has been less for a moment.

What the benchmarks taught (docs/benchmarks.md): a fixed share of CPU as a threshold cost a fifth of the makespan; jobs
lose least where memcached takes one thread of each physical core, as their siblings then are half idle; the order and
the widths of jobs are worth as much as the cores.
"""

from colocate.policy import Packer, Plan, Policy, Setting, Sizing, View, core_a_thread, last_resort


class Reactive(Policy):
    """Sizes memcached from its load, its run-queue delay and its latency; packs the jobs on the rest.

    Where the SLO breaks although memcached has a core for each thread, further cores are left idle, so that less runs
    beside it; under a load with which it broke even so, they are not.

    Options:
        caution: share of the SLO's latency that a setting may come to where a safer one is to be had.
        hold_s: seconds for which fewer cores must have sufficed before one is taken.
        settle_s: seconds from a change until the latency tells of the new load and cores.
        quantum_s: core-seconds that one job must have more left than another to take its place.
        spread: memcached takes one thread of each physical core first, instead of whole ones.
    """

    caution: float = 0.85
    hold_s: float = 0.5
    settle_s: float = 3.0
    quantum_s: float = 20.0
    spread: bool = True

    def prepare(self) -> None:
        """Start with nothing learned."""
        self._sizing = Sizing(caution=self.caution, settle_s=self.settle_s, hold_s=self.hold_s)
        self._packer = Packer(service_share=0.75, quantum_s=self.quantum_s)

    def decide(self, view: View) -> Plan:
        """The fewest cores that hold; the rest to the jobs."""
        ladder = (Setting(cores) for cores in range(max(1, view.service.min_cores), view.total_cores + 1))
        setting = self._sizing.choose(view, ladder, last_resort(view, share=False))
        packing = self._packer.pack(view, setting.cores)
        return Plan(
            min(core_a_thread(view), setting.cores),
            packing.jobs,
            reason=self._sizing.reason(),
            threads=self._packer.threads(view),
            spread=self.spread,
        )
