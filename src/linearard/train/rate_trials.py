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
#: With long windows, a rate may raise KL so many times in a trial, and by so many nats. A stage ends near the
#: KL to which its rate raises it at once, and within a few steps long windows gain less than they vary:
#: SmolLM2-135M ended at .0096 after a trial's .0087, Qwen2.5-0.5B at .0032 after .0034, and at .0015 after
#: .0014 (docs/LOG.md, 2026-12-01).
_KL_TIMES, _KL_NATS = 2.2, 0.02
_LONG_NATS = 0.05  # a long window may lose in it


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

    def keeps_near(self, factor: float) -> bool:
        """Whether a rate left the model nearly as near to the original, and its long windows as they were."""
        look = self.found[factor]
        most = min(_KL_TIMES * self.begun.kl, self.begun.kl + _KL_NATS)
        if not look.finite or look.kl > most:
            return False
        return look.long is None or look.long <= self.begun.long + _LONG_NATS

    @property
    def harmful(self) -> bool:
        """Whether the chosen rate, too, made the model worse."""
        if self.begun.long is not None:
            return not self.keeps_near(self.factor)
        return self.gain(self.factor) < 0


def choose_rate(begun: Look, attempt: Callable[[float], Look], trials: int) -> RateTrials:
    """Climb or descend by factors of two from the rate that was asked for.

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
    if begun.long is not None:
        _as_high_as_kl_allows(tried, run, trials)
        return tried
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


def _as_high_as_kl_allows(tried: RateTrials, run: Callable[[float], float], trials: int) -> None:
    if tried.keeps_near(1.0):
        while len(tried.found) < trials:
            run(2 * tried.factor)
            if not tried.keeps_near(2 * tried.factor):
                return
            tried.factor *= 2
        return
    while not tried.keeps_near(tried.factor) and len(tried.found) < trials + _MORE_HALVINGS:
        tried.factor /= 2
        run(tried.factor)


def _goes_on(tried: RateTrials, trials: int) -> bool:
    """Whether to halve again: beyond the trials asked for, as long as that has mended a harmful rate."""
    if len(tried.found) < trials:
        return True
    was_harmful = tried.factor < 1.0 and tried.gain(2 * tried.factor) < 0
    return (tried.harmful or was_harmful) and len(tried.found) < trials + _MORE_HALVINGS
