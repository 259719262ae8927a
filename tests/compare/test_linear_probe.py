"""The linear probe on frozen features, beside features by hand and scikit-learn alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from untrained_runs import untrained

from lorada.compare.baselines import linear_probe as probes
from lorada.compare.baselines.linear_probe import linear_probe
from lorada.support.metric_names import ERROR

PENALTIES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
FOLDS = 5
# Three texts in a group share their letters, so rows of a group give each other away.
TEXTS = ["abcdefghij"[group] * (3 + copy) + "xyz"[copy] for group in range(10) for copy in range(3)]
ANSWERS = {
    "label": [{"label": "ny"[(index // 3) % 2]} for index in range(30)],
    "labels": [{"labels": [["n"], ["n", "y"], ["y"], []][(index // 3) % 4]} for index in range(30)],
    "score": [{"score": (index // 3) / 2 + len(TEXTS[index])} for index in range(30)],
}
HELD_OUT = [*range(27, 30), *range(0, 27, 9)]  # the last group and rows of others
TRAIN = [index for index in range(30) if index not in HELD_OUT]


def rows_of(form, indices, *, grouped=False):
    rows = []
    for index in indices:
        group = {"group": f"g{index // 3}"} if grouped else {}
        rows.append({"text": TEXTS[index], **ANSWERS[form][index], **group})
    return rows


def features_by_hand(run, kind):
    """Features of each text, read alone and so without a pad: the mean, and the one token."""
    reader = run.model.get_encoder() if run.kind == "encoder_decoder" else run.model.base_model
    mean, single = [], []
    for text in TEXTS:
        ids = torch.tensor([run.tokenizer(text).input_ids])
        with torch.no_grad():
            hidden = reader(input_ids=ids).last_hidden_state[0].double()
        mean.append(hidden.mean(0).numpy())
        single.append(hidden[0 if kind == "encoder" else -1].numpy())
    return {"mean": np.array(mean), "single": np.array(single)}


def by_scikit_learn(form, features, targets, groups):
    """The answers of the better of two searches, one for each way to pool."""
    searches = []
    for table in features.values():
        if form == "score":
            model, grid = Ridge(), {"ridge__alpha": [1 / penalty for penalty in PENALTIES]}
            measured, split = "neg_mean_squared_error", GroupKFold(FOLDS)
        elif form == "labels":
            model = OneVsRestClassifier(LogisticRegression(max_iter=1000))
            grid = {"onevsrestclassifier__estimator__C": PENALTIES}
            measured, split = "f1_micro", GroupKFold(FOLDS)
        else:
            model, grid = LogisticRegression(max_iter=1000), {"logisticregression__C": PENALTIES}
            measured, split = "accuracy", StratifiedGroupKFold(FOLDS)
        pipeline = make_pipeline(StandardScaler(), model)
        search = GridSearchCV(pipeline, grid, cv=split, scoring=measured)
        searches.append((search.fit(table[TRAIN], targets, groups=groups), table[HELD_OUT]))
    best, table = max(searches, key=lambda pair: pair[0].best_score_)
    return best.predict(table)


def run_on(place, form, model, **options):
    train = rows_of(form, TRAIN, **options)
    return untrained(place, train, rows_of(form, HELD_OUT, **options), model=model)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("probe")


CASES = [
    ("llama", "right", "label"), ("llama", "left", "label"), ("bert", "right", "label"),
    ("bert", "right", "labels"), ("llama", "left", "score"), ("bert", "right", "score"),
    ("bart", "right", "label"), ("t5", "right", "label"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "side", "form"), CASES)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_probe_scores_what_scikit_learn_does_on_features_of_rows_that_are_read_alone(
    place, model, side, form, grouped
):
    run, train, held_out = run_on(place, form, model, grouped=grouped)
    run.tokenizer.padding_side = side
    scored = linear_probe(run, train, held_out)
    features = features_by_hand(run, run.kind)
    measured = probes._features(run, train)
    for name, table in features.items():
        np.testing.assert_allclose(getattr(measured, name), table[TRAIN], atol=2e-5)
    groups = [index // 3 if grouped else index for index in TRAIN]
    groups = [f"g{group}" if grouped else f"row {n}" for n, group in enumerate(groups)]
    answers = by_scikit_learn(form, features, probes._targets(train), groups)
    if form == "score":
        right = np.array([ANSWERS[form][index]["score"] for index in HELD_OUT])
        expected = abs(answers - right)
        assert scored.row_scores[ERROR] == pytest.approx(expected, rel=1e-2, abs=1e-3)
    elif form == "label":
        right = [ANSWERS[form][index]["label"] for index in HELD_OUT]
        names = [train.labels[index] for index in answers]
        expected = [100.0 * (name == wanted) for name, wanted in zip(names, right, strict=True)]
        assert scored.row_scores["accuracy"] == expected
    else:
        right = [set(ANSWERS[form][index]["labels"]) for index in HELD_OUT]
        chosen = [{n for n, is_set in zip(train.labels, row, strict=True) if is_set}
                  for row in answers]  # fmt: skip
        expected = [100.0 * (a == b) for a, b in zip(chosen, right, strict=True)]
        assert scored.row_scores["exact_match"] == expected
    assert scored.prompt_tokens is None


def test_rows_of_a_group_are_on_one_side_of_every_division_of_the_cross_validation(place):
    _, train, _ = run_on(place, "label", "bert", grouped=True)
    search = probes._search(train, probes._folds(train))
    groups = probes._groups(train)
    divisions = [*search.cv.split(np.zeros(len(groups)), probes._targets(train), groups)]
    assert len(divisions) == FOLDS
    for learned, tried in divisions:
        assert not {groups[index] for index in learned} & {groups[index] for index in tried}


def test_few_rows_of_each_class_are_divided_into_fewer_parts(place):
    few = [{"text": text, "label": label} for text, label in zip("abcdef", "nnyymm", strict=True)]
    held_out_rows = rows_of("label", HELD_OUT)
    run, train, held_out = untrained(place, few, held_out_rows, model="bert", trials=0)
    assert probes._folds(train) == 2
    assert len(linear_probe(run, train, held_out).row_scores["accuracy"]) == len(HELD_OUT)


@pytest.mark.parametrize("classes", ["nnnny", "nynyn"])
def test_rows_that_cannot_be_divided_have_a_reason_instead_of_a_probe(place, classes):
    one_group = {"group": "g"} if classes == "nynyn" else {}
    few = [
        {"text": text, "label": label, **one_group}
        for text, label in zip("abcde", classes, strict=True)
    ]
    held_out_rows = rows_of("label", HELD_OUT)
    run, train, held_out = untrained(place, few, held_out_rows, model="bert", trials=0)
    scored = linear_probe(run, train, held_out)
    assert not scored.row_scores
    assert "no two groups with two classes" in scored.reason


def test_numbers_are_penalised_more_the_less_they_can_be_learned(place):
    run, train, _ = run_on(place, "score", "bert")
    noise = np.random.default_rng(0).normal(size=len(train.rows))
    random = replace(
        train, rows=[{**row, "score": x} for row, x in zip(train.rows, noise, strict=True)]
    )
    probe = probes._fitted(probes._features(run, train), random, FOLDS)
    assert probe.model["ridge"].alpha > 1
    assert probes._search(random, FOLDS).param_grid["ridge__alpha"][0] == 1e4
