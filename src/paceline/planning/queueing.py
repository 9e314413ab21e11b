"""How much a shared server slows those down who use it in turn. Pure: standard library only."""

from __future__ import annotations

from collections.abc import Sequence


def waiting(away: Sequence[float], service: float, visits: int) -> float:
    """Seconds that a visit to the server takes, its queue included.

    Customer i is away for away[i] seconds a cycle (not at the server) and visits it `visits` times a cycle for
    `service` seconds each, first come first served. Approximate mean value analysis of a closed queueing network
    (Reiser and Lavenberg 1980; Schweitzer's estimate of what an arrival finds), with a service of constant length: who
    is being served has half of it left on average.
    """
    n = len(away)
    if service <= 0.0 or n == 0:
        return 0.0
    low, high = service, n * service  # the response lies between an empty queue and everybody in it
    for _ in range(60):  # what the network answers falls with the response that is put in: bisect
        response = (low + high) / 2
        rate = visits * sum(1.0 / (a + visits * response) for a in away) * (n - 1) / n  # of the others
        used = min(rate * service, 1.0)
        found = service * (1.0 + min(rate * response, n - 1.0) - used / 2.0)
        if found > response:
            low = response
        else:
            high = response
    return (low + high) / 2
