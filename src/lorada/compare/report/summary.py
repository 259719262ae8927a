"""The summary of a comparison: everything that its report shows, as plain data."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CandidateLine:
    """What the report shows of one candidate, which is a method at one size.

    Attributes:
        label: unique name, such as ``lora`` or ``lora (0.2%)``.
        method: its name.
        budget: the budgets that lead to this size, as given, joined by commas.
        above: whether it trains more parameters than a budget allows, because no size of it fits.
        sizes: settings that give this size, such as ``lora.r=3 lora.lora_alpha=6``.
        trainable: trained parameters; None if it cannot be run.
        percent: trained parameters in percent of the base.
        seeds: of the runs that are scored.
        score: mean over rows and seeds, in percent, or of a loss or an error in its own unit;
            None if no run is scored. Where it is compared, a loss or an error is minus itself.
        low: lower end of the score's 95 % interval.
        high: upper end.
        letter: letters of groups that are not significantly different; empty without a test.
        against: label of the candidate that ``p_against`` compares it with; empty if there is none.
        p_against: probability of such a difference from that candidate by chance (Holm).
        p_best: the same, from the candidate with the highest score (Holm).
        expected_loss: how far its true mean is expected to be from that of the best, in the unit of
            the score; None if it is not known.
        metric: name of the main metric, such as ``exact_match``.
        value: mean over seeds of that metric.
        adapter_mb: size of the saved adapter in MB (10^6 bytes).
        peak_memory_gib: largest peak memory of its runs in GiB.
        seconds_per_step: of training, the fastest of two turns that all candidates took at the
            end; None if they were not measured, since the times of runs depend on what ran beside.
        mergeable: whether all of it can be merged into the base.
        forgetting: how much the model's loss on a neutral text has grown, in nats per token.
        rates: learning rates of its final runs, from the lowest on: one, or one of each search.
        map_rates: those of its maps, where they differ from them.
        reason: why it has no score, or why a seed is missing; None if all is there.
    """

    label: str
    method: str
    budget: str = ""
    above: bool = False
    sizes: str = ""
    trainable: int | None = None
    percent: float | None = None
    seeds: tuple[int, ...] = ()
    score: float | None = None
    low: float | None = None
    high: float | None = None
    letter: str = ""
    against: str = ""
    p_against: float | None = None
    p_best: float | None = None
    expected_loss: float | None = None
    metric: str = ""
    value: float | None = None
    adapter_mb: float | None = None
    peak_memory_gib: float | None = None
    seconds_per_step: float | None = None
    mergeable: bool | None = None
    forgetting: float | None = None
    rates: tuple[float, ...] = ()
    map_rates: tuple[float, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Baseline:
    """A score without training: of the model as it is, or of the commonest answer.

    Attributes:
        name: ``the model as it is`` or ``the commonest answer``.
        score: as of a candidate, with its 95 % interval ``low`` to ``high``; None if there is none.
        answer: the commonest answer itself.
        reason: why there is no score.
    """

    name: str
    score: float | None = None
    low: float | None = None
    high: float | None = None
    answer: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Disagreement:
    """A held-out row that some candidates get right in most seeds and others do not.

    Attributes:
        rows: name of the held-out rows, such as ``test.jsonl``.
        row: number in that file, from 1.
        right: labels of the candidates that get it right.
        wrong: labels of the others.
        text: the row itself, if it is stored and was asked for.
        answer: its right answer, likewise.
    """

    rows: str
    row: int
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    text: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class TriedRate:
    """A learning rate that was tried.

    Attributes:
        rate: the learning rate.
        loss: on the rows set aside, in nats per token; None if it became NaN.
        stopped: whether it was stopped in the middle, because it was behind.
        chosen: whether the final runs take it.
        at_edge: whether it is the best, and the lowest or the highest of those tried, or that of
            the map is.
        search: number of the search that tried it, from 0; each seed may have its own, and each
            setting of a method and each ratio of a map's rate to it counts as one.
        map_rate: the rate of the map, if it has its own.
    """

    rate: float
    loss: float | None
    stopped: bool
    chosen: bool
    at_edge: bool
    search: int
    map_rate: float | None = None


@dataclass(frozen=True)
class Search:
    """What the search for learning rates cost, over all candidates.

    Attributes:
        each_seed: whether a rate was chosen with every seed, or one for all.
        seconds: of all trials together.
        trials: their number.
        pruned: how many were stopped early because they were behind.
        diverged: how many had a loss that became NaN, or failed.
    """

    each_seed: bool = False
    seconds: float = 0.0
    trials: int = 0
    pruned: int = 0
    diverged: int = 0


@dataclass(frozen=True)
class Summary:
    """Everything that the report of a comparison shows.

    Attributes:
        verdict: the result in one sentence (or two).
        sentences: what limits it: the detectable difference, the cost of the search, one seed.
        model: the base model.
        task: the task or the file of the held-out rows.
        rows: number of scored rows.
        seeds: of the final runs.
        metric: name of the main metric.
        form: of the rows that were learned.
        best: label of the candidate to take; empty if nothing is scored.
        lines: one for each candidate, the best score first, those without a score last.
        baselines: scores without training.
        margin: that a cheaper candidate may cost, in the unit of the metric; None if none is known.
        histories: label → training loss over steps, the mean over seeds: (step, loss).
        disagreements: the most divided rows first, at most 50.
        commands: ``train``, ``export``, ``serve``, ``explore`` and ``commands.BESIDE`` → the shell
            command for the candidate to take; ``commands.LONGER`` alone if there is none.
        pages: the same names → the page in the comparison's folder that the command has written.
        search: what the search for learning rates cost.
        tried: label → the learning rates that were tried, from the lowest on, search by search.
        hardware: one text for each kind of machine that ran a part.
        versions: package → version.
        notes: one line for each run or file that is missing, damaged or failed.
    """

    verdict: str
    sentences: tuple[str, ...] = ()
    model: str = ""
    task: str = ""
    rows: int = 0
    seeds: tuple[int, ...] = ()
    metric: str = ""
    form: str = ""
    best: str = ""
    lines: tuple[CandidateLine, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    margin: float | None = None
    histories: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    disagreements: tuple[Disagreement, ...] = ()
    commands: dict[str, str] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    search: Search = Search()
    tried: dict[str, list[TriedRate]] = field(default_factory=dict)
    hardware: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
