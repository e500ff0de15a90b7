"""Which rate each test of a hypothesis is judged at, so that any number of tests, looked at whenever one likes, stay within one rate.

The online fallback procedure (Tian & Ramdas 2021, "Online control of the familywise error rate", Stat. Methods Med. Res. 30): test i is
judged at

    alpha_i = alpha gamma_i + R_{i-1} alpha_{i-1}        gamma_i = 6 / (pi^2 i^2), which sum to 1

where R_{i-1} is 1 if the test before it rejected: what a rejection did not use up goes on to the next test. The probability of any
false rejection is at most alpha, however the tests depend on each other and wherever one stops. A rate depends on earlier tests only,
so no later test changes what was ruled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class OnlineFallback:
    """The state of the procedure between two tests.

    Attributes:
        alpha: the rate over all tests together.
        place: of the next test, from 1.
        carried: what a rejection just before leaves for it.
    """

    alpha: float
    place: int = 1
    carried: float = 0.0

    @property
    def rate(self) -> float:
        """What the next test is judged at.

        >>> round(OnlineFallback(0.05).rate, 4)
        0.0304
        """
        return self.alpha * 6 / (math.pi * self.place) ** 2 + self.carried

    def after(self, rejected: bool) -> OnlineFallback:
        """Return the state after the next test, which rejected or not."""
        return OnlineFallback(self.alpha, self.place + 1, self.rate if rejected else 0.0)
