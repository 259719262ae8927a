"""What a reader needs to repeat a comparison: settings, trials with their losses, times."""

from dataclasses import dataclass

from lorada.compare.report.candidate_lines import CandidateLine
from lorada.compare.report.summarize_comparison import Summary
from lorada.compare.stored_plan import Trial
from lorada.support.in_words import counted, duration


@dataclass(frozen=True)
class ShownTrial:
    """A trial of a search in words.

    Attributes:
        setting: the learning rate, with the other settings that the search tried.
        loss: on the rows set aside, or that there is none.
        is_chosen: whether the final runs have its settings.
    """

    setting: str
    loss: str
    is_chosen: bool


def trials_by_label(summary: Summary) -> dict[str, list[ShownTrial]]:
    """The trials of each candidate that was searched for, by its label."""
    shown = {}
    for line in summary.lines:
        trials = _shown_trials(line)
        if trials:
            shown[line.label] = trials
    return shown


def _shown_trials(line: CandidateLine) -> list[ShownTrial]:
    """The rates that a candidate's search tried, from the lowest on, each with its loss."""
    search, settings = line.result.search, line.result.candidate.choices
    if search is None:
        return []

    def place(trial: Trial) -> tuple[int, float, float]:
        return trial.choice, trial.rate, trial.map_factor

    chosen = search.choice, search.rate, search.map_factor
    shown = []
    for trial in sorted(search.trials, key=place):
        setting = f"{settings[trial.choice].method}, " if settings else ""
        map_rate = "" if trial.map_rate is None else f" (map {trial.map_rate:.2g})"
        loss = "failed or diverged" if trial.loss is None else f"{trial.loss:.4f}"
        is_chosen = place(trial) == chosen
        shown.append(ShownTrial(f"{setting}{trial.rate:.2g}{map_rate}", loss, is_chosen))
    if search.rate is not None and not any(trial.is_chosen for trial in shown):
        map_rate = "" if search.map_rate is None else f" (map {search.map_rate:.2g})"
        shown.append(ShownTrial(f"{search.rate:.2g}{map_rate}", "taken, between those tried", True))
    return shown


def labels_by_settings(summary: Summary) -> dict[str, list[str]]:
    """Where the settings that no search has chosen are from → the candidates that have them."""
    labels: dict[str, list[str]] = {}
    for line in summary.lines:
        settings_from = line.result.candidate.settings_from
        if settings_from:
            labels.setdefault(settings_from, []).append(line.label)
    return labels


def training_times(summary: Summary) -> str:
    """What all trainings took; empty if no result says it."""
    texts = []
    search_seconds = sum(line.result.search_seconds or 0.0 for line in summary.lines)
    if search_seconds:
        trials = sum(len(trials) for trials in trials_by_label(summary).values())
        texts.append(f"{duration(search_seconds)} for {counted(trials, 'trial')} of the search")
    run_seconds = sum(line.measured.run_seconds or 0.0 for line in summary.lines)
    if run_seconds:
        runs = sum(len(line.result.runs) for line in summary.lines)
        texts.append(f"{duration(run_seconds)} for {counted(runs, 'run')}")
    if not texts:
        return ""
    return f"{', '.join(texts)}, one after another, without loading and scoring"
