"""The summary of a comparison: everything that its report shows, as plain data."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
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
        score: mean over rows and seeds, in percent; None if no run is scored.
        low: lower end of the score's 95 % interval.
        high: upper end.
        letter: letters of the groups that cannot be told apart; empty without a test.
        against: label of the candidate that ``p_against`` compares it with; empty if there is none.
        p_against: probability of such a difference from that candidate by chance (Holm).
        p_best: the same, from the candidate with the highest score (Holm).
        metric: name of the main metric, such as ``exact_match``.
        value: mean over seeds of that metric.
        adapter_mb: size of the saved adapter in MB (10^6 bytes).
        peak_memory_gib: largest peak memory of its runs in GiB.
        seconds_per_step: of training, mean over runs that were not resumed.
        mergeable: whether all of it can be merged into the base.
        forgetting: how much the model's loss on a neutral text has grown, in nats per token.
        rate: learning rate of its final runs.
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
    metric: str = ""
    value: float | None = None
    adapter_mb: float | None = None
    peak_memory_gib: float | None = None
    seconds_per_step: float | None = None
    mergeable: bool | None = None
    forgetting: float | None = None
    rate: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Baseline:
    """A score without training: of the model as it is, or of the commonest answer.

    Attributes:
        name: ``the model as it is`` or ``the commonest answer``.
        score: in percent, with its 95 % interval ``low`` to ``high``; None if there is none.
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
class Search:
    """What the search for learning rates cost, over all candidates.

    Attributes:
        seconds: of all trials together.
        trials: their number.
        pruned: how many were stopped early because they were behind.
        diverged: how many had a loss that became NaN.
    """

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
        best: label of the candidate to take; empty if nothing is scored.
        lines: one for each candidate, the best score first, those without a score last.
        baselines: scores without training.
        histories: label → training loss over steps, the mean over seeds: (step, nats per token).
        disagreements: the most divided rows first, at most 50.
        commands: ``train``, ``export``, ``serve``, ``explore`` and ``commands.BESIDE`` → the shell
            command for the candidate to take.
        pages: the same names → the page in the comparison's folder that the command has written.
        search: what the search for learning rates cost.
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
    best: str = ""
    lines: tuple[Line, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    histories: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    disagreements: tuple[Disagreement, ...] = ()
    commands: dict[str, str] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    search: Search = Search()
    hardware: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
