"""colocate: fill the idle cores beside memcached with batch jobs, and give them back in milliseconds."""

__version__ = "0.1.0"
