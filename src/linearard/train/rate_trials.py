"""Which learning rate a stage trains at: a few short trials, judged by held-out windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from linearard.train.held_out import Look

#: A rate twice as high has to gain this much more to be taken: in a few steps fast is better than in many.
_BETTER = 1.1
#: Halvings beyond the trials asked for, as long as every rate tried made the model worse.
_MORE_HALVINGS = 4


@dataclass
class RateTrials:
    """What was tried.

    Attributes:
        begun: before any step.
        found: by factor of the rate asked for, where the trial ended.
        factor: what was chosen.
    """

    begun: Look
    found: dict[float, Look] = field(default_factory=dict)
    factor: float = 1.0

    def gain(self, factor: float) -> float:
        """Nats of `Look.cost` that the trial gained; minus infinity where it diverged."""
        return self.begun.cost - self.found[factor].cost

    @property
    def harmful(self) -> bool:
        """Whether the chosen rate, too, made the model worse."""
        return self.gain(self.factor) < 0


def choose_rate(begun: Look, attempt: Callable[[float], Look], trials: int) -> RateTrials:
    """Climb by factors of two from the rate that was asked for.

    Args:
        begun: a look before any step.
        attempt: trains a few steps at the rate times this factor, looks, and puts the weights back.
        trials: most attempts; some more where all of them make the model worse.
    """
    tried = RateTrials(begun)

    def run(factor: float) -> float:
        tried.found[factor] = attempt(factor)
        return tried.gain(factor)

    run(1.0)
    while len(tried.found) < trials and not tried.harmful:
        higher = 2 * tried.factor
        gained = run(higher) >= _BETTER * tried.gain(tried.factor)
        # What long windows gain by haste is lost in KL, which more steps do not bring back.
        if not gained or tried.found[higher].kl > tried.found[tried.factor].kl:
            break
        tried.factor = higher
    while tried.factor <= 1.0 and _goes_on(tried, trials):
        lower = tried.factor / 2
        before = tried.gain(tried.factor)
        if run(lower) <= before and not math.isinf(before):
            break
        tried.factor = lower
    return tried


def _goes_on(tried: RateTrials, trials: int) -> bool:
    """Whether to halve again: beyond the trials asked for, as long as that has mended a harmful rate."""
    if len(tried.found) < trials:
        return True
    was_harmful = tried.factor < 1.0 and tried.gain(2 * tried.factor) < 0
    return (tried.harmful or was_harmful) and len(tried.found) < trials + _MORE_HALVINGS
