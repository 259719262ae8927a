"""Says a decision in plain English: which method to take, why, and what is not known."""

from collections.abc import Sequence

from lorada.decision.costs import saving
from lorada.decision.decision_record import Decision
from lorada.decision.gain import Gain

# A share of a cost → its words.
SHARES = {
    0.1: "a tenth", 0.2: "a fifth", 0.25: "a quarter", 1 / 3: "a third", 0.5: "half",
    2 / 3: "two thirds", 0.75: "three quarters",
}  # fmt: skip
NEAR = 0.05  # relative; a share that is nearer to one of these is called by its words
SAVED = {
    "parameters": "trains {} of the parameters",
    "seconds": "takes {} of the time",
    "bytes": "needs {} of the memory",
}
NAMED = 5  # methods that a sentence names at most


def decision_sentence(decision: Decision) -> str:
    """The decision in a few sentences, the score first."""
    if decision.highest is None:
        return "All runs diverged, so no method has a score."
    if decision.pick is None:
        return _nothing_learned(decision, decision.highest)
    sentences = [
        _not_worth_it(decision),
        _take(decision, decision.pick),
        _gain(decision),
        _expected_loss(decision, decision.pick),
        _missing_margin(decision),
        _other_diverged(decision),
        _too_few_runs(decision),
    ]
    if len(decision.scores) - len(decision.untested) > 1:
        sentences.append(decision.no_letters)
    return " ".join(filter(None, sentences))


def _not_worth_it(decision: Decision) -> str:
    """That no gain is shown over what needs no training; empty if one is."""
    gain = decision.gain
    if gain is None or gain.is_shown:
        return ""
    without_training = (decision.baselines | decision.alternatives)[gain.over]
    score = decision.score_format.score(without_training)
    return (
        f"Do not tune yet: {gain.method} is not shown to be better than {gain.over} ({score}): its "
        f"gain is {_gain_in_words(decision, gain)}."
    )


def _gain(decision: Decision) -> str:
    """What is gained over what needs no training, where that is shown."""
    gain = decision.gain
    if gain is None or not gain.is_shown:
        return ""
    return f"It gains {_gain_in_words(decision, gain)} over {gain.over}."


def _gain_in_words(decision: Decision, gain: Gain) -> str:
    """A gain with its interval: ``5.8 points (1.2 to 10.4)``."""
    score_format = decision.score_format
    value, low, high = map(score_format.gain, (gain.value, gain.low, gain.high))
    return f"{score_format.with_unit(value)} ({low} to {high})"


def _take(decision: Decision, pick: str) -> str:
    """What to take, and why it is not the highest score if it is not."""
    is_worth_it = decision.gain is None or decision.gain.is_shown
    take = "Take" if is_worth_it else "If you tune all the same, take"
    sentence = f"{take} {pick} ({_on_new_rows(decision, pick)})"
    if decision.unlearned:
        are = "is" if len(decision.unlearned) == 1 else "are"
        sentence += (
            f" in what is a comparison of learning rates: {_listed(decision.unlearned)} {are} not "
            f"shown to have learned at the tried rates"
            f"{_rows_to_learn(decision, decision.unlearned)}"
        )
    reasons = "; ".join(_reasons(decision, pick))
    if not reasons:
        return f"{sentence}."
    # What has not learned is said behind a colon already, so the reasons begin a sentence.
    between = ". " if decision.unlearned else ": "
    return f"{sentence}{between}{reasons}."


def _reasons(decision: Decision, pick: str) -> list[str]:
    """Why the pick is taken, though it has not the highest score or some of its runs diverged."""
    reasons = []
    # The highest has the best mean. The rule starts from the leader, mostly the same method, and
    # the pick is the leader or a cheaper method.
    leader = decision.leader or pick
    highest = decision.highest or pick
    # The highest mean may be of a method with few or unsteady runs, which is not shown to have
    # learned. The sentence before has said so of all such methods, so it is not explained again.
    if highest in decision.unlearned:
        highest = leader
    if highest != leader:
        score = decision.score_format.score(decision.scores[highest])
        reasons.append(f"{highest} scores {score}, but {_why_not_highest(decision, highest)}")
    if pick != leader:
        score = decision.score_format.score(decision.scores[leader])
        reasons.append(
            f"{pick} {_saving_in_words(decision, pick, leader)} of {leader} ({score}) and is "
            f"{_not_worse(decision, pick, leader)}"
        )
    if pick in decision.diverged:
        reasons.append(f"{_its_diverged(decision, pick)}, but {_none_steady(decision)}")
    return reasons


def _why_not_highest(decision: Decision, highest: str) -> str:
    """Why the highest score is not the one that the rule starts from."""
    runs = decision.runs[highest]
    if highest in decision.diverged:
        return _its_diverged(decision, highest)
    if highest in decision.untested:
        return f"{highest} has too few runs ({runs}) for a test"
    loss = _loss_with_unit(decision, decision.expected_loss[highest])
    return f"{highest} has {runs} runs and is expected to lose {loss}"


def _on_new_rows(decision: Decision, pick: str) -> str:
    """The score that the pick is expected to have, or the measured one if nothing is expected.

    Where both are written differently, the measured one is said too: it is the one in the table,
    and a reader would otherwise not know which of the two to trust.
    """
    score_format = decision.score_format
    measured = score_format.score(decision.scores[pick])
    if decision.expected_score is None or decision.expected_interval is None:
        return measured
    low, high = map(score_format.number, decision.expected_interval)
    if low == high:
        return measured
    expected = score_format.score(decision.expected_score)
    on_new_rows = f"expect {expected}, {low} to {high}, on new rows and seeds"
    if expected == measured:
        return on_new_rows
    return f"measured {measured}; {on_new_rows}"


def _not_worse(decision: Decision, pick: str, leader: str) -> str:
    """By how much a cheaper method is not worse; by a wide margin it may be worse for certain."""
    margin = decision.score_format.margin(decision.margin or 0.0)
    if decision.differ(pick, leader):
        return f"significantly worse, but not by more than {margin} (90 % confidence)"
    return f"not worse by more than {margin} (90 % confidence)"


def _none_steady(decision: Decision) -> str:
    """Why a method is taken some of whose runs diverged."""
    if decision.margin is None:
        return "no method whose runs all finished scores as much, and no margin is given"
    margin = decision.score_format.margin(decision.margin)
    return f"no method whose runs all finished is within {margin}"


def _missing_margin(decision: Decision) -> str:
    """That a cheaper method could be taken if a margin were given; empty if there is none."""
    if decision.margin is not None or decision.leader is None:
        return ""
    left_out = (*decision.unlearned, *decision.diverged, *decision.untested)
    names = [name for name in decision.scores if name not in left_out]
    if not any(saving(decision.costs, name, decision.leader) for name in names):
        return ""
    margin = decision.score_format.with_unit(f"{decision.margin_to_give:g}")
    sentence = (
        "A cheaper method is taken only by a margin, which has no default in this unit: give what "
        f"it may cost, such as {margin}"
    )
    scores = decision.scores.values()
    may_be_percent = min(scores) >= 0 and 1 < max(scores) <= 100
    if may_be_percent and not decision.unit and not decision.lower_is_better:
        return f"{sentence}, or the unit % if scores are percent."
    return f"{sentence}."


def _other_diverged(decision: Decision) -> str:
    """How many runs of the methods diverged that are not mentioned before."""
    texts = []
    for name, runs in decision.runs.items():
        if name in decision.diverged and name not in (decision.pick, decision.highest):
            texts.append(f"{decision.diverged[name]} of {runs} runs of {name} diverged")
    return f"{', '.join(texts)}." if texts else ""


def _too_few_runs(decision: Decision) -> str:
    """Which methods have too few runs for a test, of those of which it is not said before."""
    # Where the highest is not the leader, the reason is given with it.
    explained = () if decision.highest == decision.leader else (decision.highest,)
    names = [name for name in decision.untested if name not in (*explained, *decision.diverged)]
    if not names or not decision.expected_loss:
        return ""
    return f"Too few runs for a test: {_listed(names)}."


def _rows_to_learn(decision: Decision, names: Sequence[str]) -> str:
    """How many rows would show that methods have learned, in brackets; empty if none would."""
    rows = [decision.rows_to_learn[name] for name in names if name in decision.rows_to_learn]
    if not rows:
        return ""
    least, most = _two_digits(min(rows)), _two_digits(max(rows))
    how_many = least if least == most else f"{least} to {most}"
    of_them = "" if len(rows) == len(names) else f" of {len(rows)} of them"
    return f" (about {how_many} rows would show it{of_them})"


def _two_digits(rows: int) -> str:
    """A number of rows as an estimate is written: ``1,500``."""
    rounded = float(f"{rows:.1e}")
    return f"{rounded:,.0f}"


def _expected_loss(decision: Decision, pick: str) -> str:
    """How far the pick is expected to be from the best, and the alternative that saves most."""
    if len(decision.scores) == 1:
        return "No other method has a score."
    if not decision.expected_loss:
        return (
            "It has the best score of one run each, and how much runs differ is not known: train "
            "two seeds or more."
        )
    loss = decision.expected_loss[pick]
    worse = "above" if decision.lower_is_better else "below"
    sentence = (
        f"{pick} is expected to be {_loss_with_unit(decision, loss)} {worse} whichever of these "
        "methods is truly best"
    )
    if decision.leader and decision.leader != pick:
        bound = decision.claimed_loss or loss
        if bound > loss:
            most = _loss_with_unit(decision, bound)
            sentence += f", and at most {most} {worse} {decision.leader} (90 % confidence)"
        return f"{sentence}; {_alternative(decision, decision.leader)}."
    more_runs = _more_runs(decision, pick)
    others = [name for name in decision.scores if name not in (pick, *decision.unlearned)]
    cheaper = [name for name in others if saving(decision.costs, name, pick)]
    if not cheaper:
        return f"{sentence}.{more_runs}"
    other = min(cheaper, key=decision.expected_loss.__getitem__)
    saves = _saving_in_words(decision, other, pick)
    return f"{sentence}; {_alternative(decision, other, f'{saves} and ')}.{more_runs}"


def _alternative(decision: Decision, name: str, saves: str = "") -> str:
    """What another method is expected to lose."""
    loss = decision.score_format.loss(decision.expected_loss[name])
    return f"{name} {saves}is expected to lose {loss}"


def _more_runs(decision: Decision, pick: str) -> str:
    """What three more seeds of each method would save; empty if it cannot be seen in the numbers.

    Below the margin a loss does not matter, and more seeds are not worth their time.
    """
    loss, later_loss = decision.expected_loss[pick], decision.loss_after_more_runs
    if later_loss is None or loss <= (decision.margin or 0.0):
        return ""
    before, after = map(decision.score_format.loss, (loss, later_loss))
    if before == after or later_loss >= loss:
        return ""
    return f" Three more seeds each: expected loss {after} instead of {before}."


def _nothing_learned(decision: Decision, highest: str) -> str:
    """That no method is shown to be better than the best score without training."""
    best_of = min if decision.lower_is_better else max
    baseline = best_of(decision.baselines, key=decision.baselines.__getitem__)
    which = f"{highest} is not" if len(decision.scores) == 1 else "no method is"
    rows = _rows_to_learn(decision, [highest])
    score = decision.score_format.score(decision.scores[highest])
    without_training = decision.score_format.score(decision.baselines[baseline])
    return (
        f"Do not tune yet: {which} shown to have learned at the tried rates{rows}: the best score, "
        f"{score} of {highest}, is not significantly better than {baseline} ({without_training})."
        f"{_better_alternative(decision)}"
    )


def _better_alternative(decision: Decision) -> str:
    """What scores the most without training, where it is more than what has learned nothing."""
    if decision.gain is None or decision.gain.over not in decision.alternatives:
        return ""
    name = decision.gain.over
    score = decision.score_format.score(decision.alternatives[name])
    return f" The best score without training, {score}, is that of {name}."


def _saving_in_words(decision: Decision, method: str, other: str) -> str:
    """What one method has less of than another: ``trains a third of the parameters``."""
    saved = saving(decision.costs, method, other)
    assert saved is not None  # only cheaper methods are said to save
    return SAVED[saved.kind].format(_share_in_words(saved.share))


def _share_in_words(share: float) -> str:
    for known, words in SHARES.items():
        if abs(known - share) < NEAR * known:
            return words
    return f"{100 * share:.2g} %"


def _its_diverged(decision: Decision, name: str) -> str:
    """How many runs of a method diverged that is named just before."""
    return f"{decision.diverged[name]} of its {decision.runs[name]} runs diverged"


def _loss_with_unit(decision: Decision, loss: float) -> str:
    return decision.score_format.with_unit(decision.score_format.loss(loss))


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them: ``a, b and c``, of many the first few."""
    listed = list(names[:NAMED])
    if len(names) > NAMED:
        listed.append(f"{len(names) - NAMED} more")
    *first, last = listed
    return f"{', '.join(first)} and {last}" if first else last
