"""Two versions of tritonbn timed against each other: a process each, one at work at a time."""

__all__: list[str] = []
