"""What to do next: what more rows, another method and more seeds could bring, side by side."""

from dataclasses import dataclass

from lorada.compare.curve import Curve
from lorada.decision.decision_record import Decision
from lorada.decision.score_format import ScoreFormat

MORE_SEEDS = 3  # of each method, after which a decision gives its expected loss


@dataclass(frozen=True)
class NextStep:
    """A thing to do next, and what is known of its gain.

    Attributes:
        step: what is done.
        gain: in words, with its unit.
        meaning: what that number is.
    """

    step: str
    gain: str
    meaning: str


def curve_sentence(curve: Curve, score_format: ScoreFormat) -> str:
    """What the last doubling of the training rows brought, with its interval."""
    _, half, whole = curve.points
    return (
        f"From half of the training rows ({half.rows:,}) to all of them ({whole.rows:,}), with as "
        f"many steps: {_gain_in_words(curve, score_format)} for {curve.method}."
    )


def next_steps(
    curve: Curve, decision: Decision | None, score_format: ScoreFormat
) -> list[NextStep]:
    """More rows, another method and more seeds, each with what is known of its gain.

    Args:
        curve: of the pick.
        decision: of the comparison; None where nothing can be decided.
        score_format: how its scores are written.
    """
    steps = [
        NextStep(
            "more training rows",
            _gain_in_words(curve, score_format),
            "measured from half of the rows to all of them, with the 95 % interval; what more rows "
            "than these would bring is not measured, and of a method that was chosen for its score "
            "this is somewhat too high",
        )
    ]
    if decision is None or curve.method not in decision.expected_loss:
        return steps
    loss = decision.expected_loss[curve.method]
    steps.append(
        NextStep(
            "another of these methods",
            score_format.with_unit(score_format.loss(loss)),
            f"expected loss of {curve.method}: what the truly best of these methods is expected to "
            "be ahead",
        )
    )
    later_loss = decision.loss_after_more_runs
    if later_loss is not None:
        saved = max(0.0, loss - later_loss)
        steps.append(
            NextStep(
                f"{MORE_SEEDS} more seeds of each method",
                score_format.with_unit(score_format.loss(saved)),
                "how much lower the expected loss would be, as the choice would be surer",
            )
        )
    return steps


def _gain_in_words(curve: Curve, score_format: ScoreFormat) -> str:
    """A gain with its interval: ``+2.1 points (0.4 to 3.8)``; or that no row has shown any."""
    if curve.low == curve.gain == curve.high == 0:  # an interval of no width would claim too much
        return "none, as all of its runs score every held-out row alike"
    value, low, high = map(score_format.gain, (curve.gain, curve.low, curve.high))
    sign = "+" if curve.gain > 0 else ""
    return f"{score_format.with_unit(f'{sign}{value}')} ({low} to {high})"
