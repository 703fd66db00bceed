"""How threads of one computation wait for each other on a machine that does other things, too.

torch's threads meet at the end of every operation, thousands of times per step. One that is done
spins before it sleeps, because to sleep and to be woken costs tens of microseconds. libgomp, the
OpenMP of torch's packages for Linux (MKL and oneDNN run on its threads as well), spins for
milliseconds; and where another program has the core of the thread that is waited for, it spins on
the time in which that thread could run, as long as its share lasts. Beside one busy program with
two threads a step was seen to take ten times as long then, where twice is fair (docs/cpu.md).

Spinning for about as long as a sleep and a wake-up take is never worse than twice the best that
could be known (Karlin, Li, Manasse and Owicki, 1991). Results do not change by it: the same
threads compute the same parts.
"""

from __future__ import annotations

import os

# Turns of a loop around the processor's PAUSE: 20 to 50 microseconds of it.
_SPINS = "1000"
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly() -> None:
    """Sets this in the environment of this process and of those that it starts.

    libgomp reads it once, when torch is imported; what the user has set stays.
    """
    if not any(name in os.environ for name in SETTINGS):
        os.environ[SETTINGS[0]] = _SPINS


def in_force() -> dict[str, str]:
    """What says in this process how threads wait, for processes on other machines."""
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}
