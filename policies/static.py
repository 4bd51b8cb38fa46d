"""A fixed split: memcached keeps the same cores for the whole run, the jobs share the rest."""

from colocate.policy import Plan, Policy, View, share_out


class Static(Policy):
    """The simplest thing that holds an SLO: enough cores for the peak, always.

    Options:
        service_cores: memcached's cores; 0 is one for each of its threads, but never all of them.
    """

    service_cores: int = 0

    def decide(self, view: View) -> Plan:
        """The same counts at every tick, until a job ends."""
        wanted = self.service_cores or max(1, view.service.threads)
        service = min(wanted, view.total_cores if self.service_cores else max(1, view.total_cores - 1))
        return Plan(service, share_out(view.jobs.values(), view.total_cores - service), reason="fixed split")
