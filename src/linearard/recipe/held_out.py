"""What a stage looks at while it trains, and what it decides by that."""

from __future__ import annotations

from dataclasses import dataclass

from linearard.fields import a_list, check_fields, described, number, whole

_WINDOW = whole(2, 1 << 27)


@dataclass
class HeldOutConfig:
    """Held-out windows that a stage is watched by, and the decisions that they make.

    The short windows measure KL to the original; the long one measures next-token loss, and that of
    passages which come back in it. Nothing is trained on them.
    """

    window: int = described(
        2048, "Tokens of a short held-out window, in the native window.", _WINDOW
    )
    sequences: int = described(
        4, "How many short held-out windows; 0: the stage is not watched.", whole()
    )
    long_window: int | None = described(
        None,
        "Tokens of a long held-out window, up to the stretched window; null: none is read.",
        _WINDOW.or_null(),
    )
    long_sequences: int = described(1, "How many long held-out windows.", whole(1))
    every: int = described(
        0, "Look every this many optimizer steps; 0: only before and after the stage.", whole()
    )
    rate_trials: int = described(
        0,
        "Before the stage, try learning_rate and up to this many rates in all, by factors of two, for "
        "rate_steps steps each from the same weights, and train at the one that gains most on the "
        "held-out windows; where a long one is read, at the highest that keeps the KL of the short ones "
        "near where it was. 0: none.",
        whole(0, 60),
    )
    rate_steps: int = described(8, "Optimizer steps of one trial.", whole(1))
    reference_kl: float | None = described(
        None,
        "KL to the original, in nats, of a stretched model for which `learning_rate` and `logit_weight` "
        "hold. One that is nearer on the held-out windows has less to change: its rate is lower by the "
        "square root of the ratio, and where the teacher reads whole windows `logit_weight` is as much "
        "higher, up to 4 times. null: both hold for every model.",
        number(0, 100, above=True, words="a KL in nats").or_null(),
    )
    shares: list[float] = described(
        list,
        "At the end, try each of these shares of what the stage changed, and keep the one that is best "
        "on the held-out windows, with a KL a fifth below the stretched model's where one has it. Empty: "
        "`weight_interpolation` alone decides.",
        a_list(number(0, 1, above=True, words="a share")),
    )

    def __post_init__(self) -> None:
        check_fields(self, "held_out")
