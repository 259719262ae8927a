"""Draws what each candidate scores: a line for each, with its interval and a dot for each seed.

Scores without training stand below the candidates, in lines of their own, so that names of any
number of them never overlap; a dashed line leads from each through the candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorada.compare.report.baseline_scores import Baseline
from lorada.compare.report.candidate_lines import CandidateLine
from lorada.compare.report.score_scale import Scale
from lorada.compare.report.summarize_comparison import Summary
from lorada.compare.report.svg_pictures import ACCENT, INK, WIDE, Picture, picture, shortened
from lorada.decision.score_format import ScoreFormat
from lorada.support.error_messages import needs_extra
from lorada.support.in_words import counted
from lorada.support.metric_names import lower_is_better

with needs_extra("compare"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE_HEIGHT, HIGH_LINE = 0.27, 0.5  # inches of a line beside its name, and below it
AROUND = 0.75  # inches for the numbers and the title of the axis
GAP = 0.5  # lines between candidates and baselines
# A baseline is on the axis if it is at most so many times the spread of the candidates away from
# them: one far off would press all candidates together. It has an arrow at the edge instead.
FAR = 1.5
PADDING = 0.05  # of the axis at either end
SEED_BELOW = 0.26  # lines by which the dots of seeds lie below their mean
ABOVE = 0.26  # lines by which words stand above their line in a narrow picture
LETTER = 7.0  # points that a letter of a group takes
SOFT = 0.55  # opacity of what is significantly worse, and of baselines


@dataclass(frozen=True)
class ScoreLine:
    """A line of the picture.

    Attributes:
        name: of the candidate or the baseline.
        score: as it is shown.
        ends: of its 95 % interval; None if unknown.
        seed_scores: of each of its runs; empty for a baseline.
        letters: of its groups.
        kind: ``pick``, ``candidate``, ``worse`` (significantly, than the highest score) or
            ``baseline``.
    """

    name: str
    score: float
    ends: tuple[float, float] | None
    seed_scores: tuple[float, ...]
    letters: str
    kind: str


@dataclass(frozen=True)
class PicturedScores:
    """What the picture shows.

    Attributes:
        lines: the candidates, then the baselines.
        scale: how the scores are called.
        score_format: how they are written.
        rows: the number of scored rows.
    """

    lines: list[ScoreLine]
    scale: Scale
    score_format: ScoreFormat
    rows: int


def score_picture(summary: Summary) -> Picture | None:
    """The picture of a summary; None without a score."""
    return picture_of(pictured_scores(summary))


def pictured_scores(summary: Summary) -> PicturedScores:
    """What the picture of a summary shows."""
    return PicturedScores(score_lines(summary), summary.scale, summary.score_format, summary.rows)


def picture_of(scores: PicturedScores) -> Picture | None:
    """The picture of scores; None without one of a candidate."""
    lines = scores.lines
    if not any(line.kind != "baseline" for line in lines):
        return None
    texts = [f"{line.name} {scores.score_format.number(line.score)}" for line in lines]
    text = f"{scores.scale.title.capitalize()} of each candidate: {', '.join(texts)}"
    return picture("scores", lambda width: draw_scores(scores, width), text, _caption(lines))


def _caption(lines: Sequence[ScoreLine]) -> str:
    """How the picture is read; only what it has is named."""
    kinds = {line.kind for line in lines}
    sentences = ["Each line is a candidate: its mean with the 95 % interval, small dots its seeds."]
    if "pick" in kinds:
        sentences.append("★: the one to take.")
    if "worse" in kinds:
        sentences.append("Pale: significantly worse than the highest.")
    if any(line.letters for line in lines):
        sentences.append("Those that share a letter are not significantly different.")
    if "baseline" in kinds:
        sentences.append("Squares and dashed lines: without training.")
    if has_far_baseline(lines):
        sentences.append("An arrow: farther away than the axis goes.")
    return " ".join(sentences)


def score_lines(summary: Summary) -> list[ScoreLine]:
    """The candidates in the order of the summary, then the baselines, the best of them first."""
    lines = [_line_of_candidate(summary, line) for line in summary.scored]
    baselines = [one for one in summary.baselines if one.score is not None]
    baselines.sort(key=_score_of, reverse=not lower_is_better(summary.metric))
    for baseline in baselines:
        ends = _ends(baseline.low, baseline.high)
        lines.append(ScoreLine(baseline.name, _score_of(baseline), ends, (), "", "baseline"))
    return lines


def _line_of_candidate(summary: Summary, line: CandidateLine) -> ScoreLine:
    """What is drawn of a candidate: the pick and those that are worse have colours of their own."""
    decision = summary.decision
    kind = "candidate"
    if line.label == summary.best:
        kind = "pick"
    elif decision is not None and decision.differ(line.label, decision.highest):
        kind = "worse"
    ends = _ends(line.decided.low, line.decided.high)
    seed_scores = tuple(line.seed_scores)
    return ScoreLine(
        line.label, line.score or 0.0, ends, seed_scores, line.decided.letter, kind
    )  # fmt: skip


def _score_of(baseline: Baseline) -> float:
    return baseline.score or 0.0


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def draw_scores(scores: PicturedScores, width: float) -> Figure:
    """The figure in a width in inches; in a narrow one names stand above their lines."""
    lines = scores.lines
    is_wide = width >= WIDE
    height_of_line = LINE_HEIGHT if is_wide else HIGH_LINE
    places = _places(lines)
    height = AROUND + height_of_line * (places[-1] + 1)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(places[-1] + 0.6, -0.6 if is_wide else -0.9)  # the first line is on top
    left, right = axis_ends(lines)
    axes.set_xlim(left, right)
    axes.set_xlabel(f"{scores.scale.title} ({scores.scale.unit}), {counted(scores.rows, 'row')}")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    if not is_wide:
        axes.locator_params(axis="x", nbins=5)
    best_baseline = next((line for line in lines if line.kind == "baseline"), None)
    for line, place in zip(lines, places, strict=True):
        if line.kind == "pick":
            above, below = (0.48, 0.48) if is_wide else (0.64, 0.36)
            axes.axhspan(place - above, place + below, color=ACCENT, alpha=0.1, linewidth=0)
        if line.kind == "baseline":
            _draw_baseline_line(axes, line, place, is_best=line is best_baseline)
        _draw_line(axes, line, place)
    _write_names(axes, lines, places, is_wide=is_wide)
    _write_scores(axes, scores.score_format, lines, places, is_wide=is_wide)
    return figure


def _places(lines: Sequence[ScoreLine]) -> list[float]:
    """How far down each line is, in lines; baselines have a gap above them."""
    places = []
    for index, line in enumerate(lines):
        places.append(index + (GAP if line.kind == "baseline" else 0.0))
    return places


def axis_ends(lines: Sequence[ScoreLine]) -> tuple[float, float]:
    """The ends of the axis: all of the candidates, and the baselines that are not far from them."""
    values = []
    for line in lines:
        if line.kind != "baseline":
            values += [line.score, *(line.ends or ()), *line.seed_scores]
    left, right = min(values), max(values)
    spread = right - left or abs(left) / 10 or 1.0
    near_left, near_right = left - FAR * spread, right + FAR * spread
    for line in lines:
        if line.kind == "baseline" and near_left <= line.score <= near_right:
            # Its interval may reach beyond the axis: where it lies is what counts.
            left, right = min(left, line.score), max(right, line.score)
    padding = PADDING * (right - left or spread)
    return left - padding, right + padding


def has_far_baseline(lines: Sequence[ScoreLine]) -> bool:
    """Whether a baseline lies beyond an end of the axis."""
    left, right = axis_ends(lines)
    return any(not left <= line.score <= right for line in lines)


def _draw_line(axes: Axes, line: ScoreLine, place: float) -> None:
    """The mean of a line with its interval and its seeds, or an arrow at the edge to its mean."""
    colour = ACCENT if line.kind == "pick" else INK
    alpha = SOFT if line.kind in ("worse", "baseline") else 1.0
    left, right = axes.get_xlim()
    if not left <= line.score <= right:
        edge, marker = (left, "<") if line.score < left else (right, ">")
        axes.plot([edge], [place], marker=marker, color=colour, alpha=alpha, clip_on=False)
        return
    if line.ends is not None:
        # A line across the whole page would say nothing: it ends where the axis does.
        low, high = max(line.ends[0], left), min(line.ends[1], right)
        axes.plot([low, high], [place, place], color=colour, alpha=alpha, linewidth=2.2)
    marker = "s" if line.kind == "baseline" else "o"
    axes.plot([line.score], [place], marker=marker, markersize=6, color=colour, alpha=alpha)
    if len(line.seed_scores) > 1:
        heights = [place + SEED_BELOW] * len(line.seed_scores)
        axes.plot(
            line.seed_scores, heights, marker="o", markersize=3.4, linestyle="none", color=colour,
            alpha=SOFT, markeredgewidth=0,
        )  # fmt: skip


def _draw_baseline_line(axes: Axes, line: ScoreLine, place: float, *, is_best: bool) -> None:
    """A dashed line from a baseline up through all candidates, the clearest from the best one.

    It has to be beaten by what is to be worth a training.
    """
    left, right = axes.get_xlim()
    if not left <= line.score <= right:
        return
    top = axes.get_ylim()[1]
    alpha, width = (0.7, 1.2) if is_best else (0.35, 0.8)
    axes.plot(
        [line.score, line.score], [place, top], color=INK, alpha=alpha, linewidth=width,
        linestyle="--", zorder=0,
    )  # fmt: skip


def _write_names(
    axes: Axes, lines: Sequence[ScoreLine], places: Sequence[float], *, is_wide: bool
) -> None:
    names = []
    for line in lines:
        star = "★ " if line.kind == "pick" else ""
        names.append(star + shortened(line.name))
    axes.tick_params(axis="y", length=0)
    if not is_wide:
        axes.set_yticks(places, [""] * len(names))
        for line, name, place in zip(lines, names, places, strict=True):
            _write(axes, line, name, (0, place - ABOVE), va="bottom")
        return
    axes.set_yticks(places, names)
    for text, line in zip(axes.get_yticklabels(), lines, strict=True):
        if line.kind == "pick":
            text.set_color(ACCENT)
            text.set_fontweight("bold")


def _write_scores(
    axes: Axes, score_format: ScoreFormat, lines: Sequence[ScoreLine], places: Sequence[float], *,
    is_wide: bool,
) -> None:  # fmt: skip
    """The numbers of each line: at its right, letters in a column, or above it in a narrow one."""
    number = score_format.number
    width_of_letters = LETTER * max(len(line.letters) for line in lines)
    for line, place in zip(lines, places, strict=True):
        score = number(line.score)
        if line.ends is not None:
            low, high = line.ends
            score += f" ({number(low)} to {number(high)})"
        if is_wide:
            _write(axes, line, line.letters, (1, place), offset=LETTER)
            offset = 2 * LETTER + width_of_letters
            _write(axes, line, score, (1, place), offset=offset)
        else:
            words = f"{line.letters}  {score}".strip()
            _write(axes, line, words, (1, place - ABOVE), ha="right", va="bottom")


def _write(
    axes: Axes, line: ScoreLine, words: str, place: tuple[float, float], *, offset: float = 0.0,
    ha: str = "left", va: str = "center",
) -> None:  # fmt: skip
    """Write words at a share of the axis and a line, so many points to the right of that."""
    is_pick = line.kind == "pick"
    axes.annotate(
        words, place, xycoords=axes.get_yaxis_transform(), xytext=(offset, 0),
        textcoords="offset points", ha=ha, va=va, annotation_clip=False,
        color=ACCENT if is_pick else INK, fontweight="bold" if is_pick else "normal",
    )  # fmt: skip
