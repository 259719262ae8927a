"""The score of each row alone: the mean is the main metric, where that is a mean over rows."""

import math

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_rows import samples

from lorada.data.rows import answer_of
from lorada.data.scoring import row_metrics
from lorada.data.tasks import TASKS

# Rows for the forms of a user's own file.
OWN = {
    "messages": [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in (("2 + 2", "4"), ("sky", "blue"))
    ],
    "prompt": [{"prompt": "2 + 2 =", "response": " 4"}, {"prompt": "sky:", "response": " blue"}],
    "choice": [
        {"prompt": "ice", "candidates": ["cold", "hot", "red"], "answer": n} for n in (0, 2)
    ],
    "label": [{"text": "good", "label": "yes"}, {"text": "bad", "label": 0}],
}
CASES = [(name, protocol) for name in TASKS for protocol in TASKS[name].protocols]
# Main metrics that are not a mean over rows: correlations, BLEU and perplexity.
NO_MEANS = [
    ("cola", "classify"), ("stsb", "classify"), ("wmt16_en_ro", "seq2seq"),
    ("wmt16_en_ro", "prompt"), ("proof_pile", "perplexity"), ("jsonl", "score"), ("jsonl", "text"),
]  # fmt: skip
MEANS = [case for case in CASES if case not in NO_MEANS]


def rows_of(name, protocol):
    """Rows to score, in the form of a protocol."""
    if name == "jsonl":
        return OWN[protocol]
    found = TASKS[name].protocols[protocol]
    return [(found.convert_test or found.convert)(sample["row"]) for sample in samples(name)]


def answers_of(protocol, row):
    """What a model may answer to a row, rightly, wrongly, or in part."""
    if protocol.form == "label":
        return st.sampled_from(protocol.labels or [str(row["label"]), "another"])
    if protocol.form == "choice":
        return st.integers(0, len(row["candidates"]) - 1)
    right = answer_of(row)
    return st.sampled_from([right, "", right[: len(right) // 2], f"no, {right} and more", "7 B"])


def main_of(found):
    """The first metric of each row."""
    return [next(iter(one.values())) for one in found]


@pytest.mark.parametrize(("name", "key"), MEANS, ids=[f"{a}-{b}" for a, b in MEANS])
@settings(max_examples=15, deadline=None)  # the first loads a library
@given(data=st.data())
def test_the_mean_over_rows_is_the_main_metric_exactly(name, key, data):
    protocol = TASKS[name].protocols[key]
    rows = data.draw(st.lists(st.sampled_from(rows_of(name, key)), min_size=1, max_size=7))
    answers = [data.draw(answers_of(protocol, row)) for row in rows]
    scores = main_of(row_metrics(protocol, answers, rows))
    assert len(scores) == len(rows)
    assert all(0 <= score <= 100 for score in scores)
    assert sum(scores) / len(scores) == next(iter(protocol.score(answers, rows).values()))


def test_a_class_is_right_or_wrong_also_where_the_main_metric_is_a_correlation():
    rows = [{"text": "a", "label": label} for label in ("acceptable", "unacceptable", "acceptable")]
    cola = TASKS["cola"].protocols["classify"]
    assert main_of(row_metrics(cola, ["acceptable"] * 3, rows)) == [100, 0, 100]


def test_a_translation_has_the_sentence_level_score():
    rows = [{"response": "Ploaia a căzut toată ziua."}, {"response": "Da."}]
    outputs = ["Ploaia cade toată ziua.", "Da."]
    protocol = TASKS["wmt16_en_ro"].protocols["seq2seq"]
    expected = [
        sacrebleu.sentence_bleu(output, [reference], tokenize="none").score
        for output, reference in (
            ("Ploaia cade toata ziua .", "Ploaia a cazut toata ziua ."),
            ("Da .", "Da ."),
        )
    ]
    assert main_of(row_metrics(protocol, outputs, rows)) == pytest.approx(expected)
    assert expected[1] == pytest.approx(100)  # though it has no sequence of four tokens


def test_a_class_counts_as_much_as_any_other_in_balanced_accuracy():
    rows = [{"text": "a", "label": label} for label in ("ok", "ok", "ok", "fraud")]
    protocol = TASKS["jsonl"].protocols["label"]
    found = row_metrics(protocol, ["ok", "ok", "fraud", "ok"], rows)
    assert [one["accuracy"] for one in found] == [100, 100, 0, 0]
    mean = sum(one["balanced_accuracy"] for one in found) / 4
    whole = protocol.score(["ok", "ok", "fraud", "ok"], rows)
    assert mean == pytest.approx(whole["balanced_accuracy"]) == pytest.approx(100 / 3)


def test_a_number_has_its_distance_from_the_right_one_in_the_unit_of_the_rows():
    rows = [{"text": "a", "score": score} for score in (1000, "3000", 5000.0)]
    protocol = TASKS["jsonl"].protocols["score"]
    found = row_metrics(protocol, [1000.0, 5000.0, 4000.0], rows)
    assert found == [{"mae": 0}, {"mae": 2000}, {"mae": 1000}]


def test_an_answer_that_holds_the_right_one_contains_it():
    rows = [{"prompt": "a", "response": " red lamp"}] * 3
    found = row_metrics(
        TASKS["jsonl"].protocols["prompt"], ["red lamp", "a red lamp.", "red"], rows
    )
    assert [tuple(one.items()) for one in found] == [
        (("exact_match", right), ("contains", there))
        for right, there in ((100, 100), (0, 100), (0, 0))
    ]


def test_the_mean_of_windows_is_the_logarithm_of_the_perplexity():
    losses = [1.5, 2.5, 0.25]
    own, long = TASKS["jsonl"].protocols["text"], TASKS["proof_pile"].protocols["perplexity"]
    for protocol, answers in ((own, [(x, 7) for x in losses]), (long, [(16, losses)])):
        found = main_of(row_metrics(protocol, answers, [{"text": "a"}]))
        assert found == pytest.approx(losses)
        perplexity = next(iter(protocol.score(answers, []).values()))
        assert math.exp(sum(found) / 3) == pytest.approx(perplexity)
    shorter = [(1.5, 15), (2.5, 15), (9.0, 3)]  # the last window weighs a fifth
    mean = (1.5 * 15 + 2.5 * 15 + 9.0 * 3) / 33
    assert next(iter(own.score(shorter, []).values())) == pytest.approx(math.exp(mean))
    assert sum(main_of(row_metrics(own, shorter, []))) / 3 == pytest.approx(mean)
    assert main_of(row_metrics(long, [(16, [1.0]), (32, [0.5, 2.0])], [])) == [1.0, 0.5, 2.0]
