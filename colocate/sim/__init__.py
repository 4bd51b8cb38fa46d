"""The simulated machine: models of memcached and of batch jobs, in virtual time."""
