"""The metric that a user's own rows are scored by: by their length, by name, by a function."""

import math
import sys

import pytest
import sacrebleu
from folders import ROWS, TURNS, byte_tokenizer, refused, rows_file
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_chrf
from sample_rows import samples

from lorada.data.answer_length import answer_limit
from lorada.data.rows.own_rows import load_rows
from lorada.data.rows.row_content import answer_of
from lorada.data.rows.rows import Rows
from lorada.data.scoring.chosen_metric import ChosenMetric, metric_of
from lorada.data.scoring.metrics import classes, label_sets, numbers
from lorada.data.scoring.row_metrics import refuse_metric, refuse_unnamed, row_metrics, row_value
from lorada.data.scoring.score_answers import score_answers
from lorada.data.scoring.text_metrics import bleu, normalised_romanian, rouge
from lorada.data.scoring.usual_responses import usual_longest
from lorada.data.tasks import TASKS
from lorada.runs.recipe import Recipe
from lorada.support.metric_names import NAMES, ROWS_CALLED, names_in_words
from lorada.training.load_recipe import load_recipe

FIVE, SIX = "it is a red lamp", "it is a red lamp indeed"


def turn(role, content):
    return {"role": role, "content": content}


def chat(*answers):
    """A chat with these answers, after a question that is longer than any of them."""
    asked = [turn("user", "which of all these lamps is it that you would like to buy today?")]
    return {"messages": [one for text in answers for one in (*asked, turn("assistant", text))]}


LENGTHS = {
    "five words": ("prompt", [{"prompt": SIX, "response": FIVE}], "exact_match", 16),
    "six words": ("prompt", [{"prompt": "", "response": r} for r in ("a", 5 * SIX)], "loss", 115),
    "a first turn of six words": ("messages", [chat(2 * SIX, "Two"), chat("a", "b")], "loss", 46),
    "chats of few words": ("messages", [chat("Yes!", FIVE)], "exact_match", 16),
    "a turn that only calls a tool": ("messages", [chat(None, "Two")], "exact_match", 3),
    "letters of a script without blanks": ("prompt", [{"response": "红色的灯在桌上"}], "loss", 21),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_the_responses_of_the_training_rows_choose_the_metric_and_the_length(case):
    form, rows, metric, tokens = LENGTHS[case]
    asked = Rows(rows, form, (), "rows", TASKS["jsonl"].protocols[form])
    recipe = load_recipe(None, [], {"model": "-", "output": "-"})
    chosen = metric_of(asked, recipe)
    assert chosen.name == metric
    few = chosen.reason.startswith("0 of ")
    assert few == (metric == "exact_match")
    assert chosen.reason.endswith(" responses of the training rows are longer than five words")
    limit = answer_limit(asked, recipe, byte_tokenizer(), "decoder", None)
    assert limit == max(32, math.ceil(1.1 * tokens))
    named = metric_of(asked, recipe.model_copy(update={"metric": "contains"}))
    assert named == ChosenMetric("contains")


def test_one_odd_response_of_many_changes_neither_the_metric_nor_the_length():
    recipe = load_recipe(None, [], {"model": "-", "output": "-", "max_length": 4096})
    protocol = TASKS["jsonl"].protocols["prompt"]
    short = [{"prompt": "p", "response": "yes " * 5}] * 39
    for odd, metric, limit in ((1, "exact_match", 32), (2, "exact_match", 32), (3, "loss", 1320)):
        rows = [*short[odd - 1 :], *[{"prompt": "p", "response": "word " * 240}] * odd]
        rows = Rows(rows, "prompt", (), "rows", protocol)
        assert metric_of(rows, recipe).name == metric
        assert answer_limit(rows, recipe, byte_tokenizer(), "decoder", None) == limit
    assert usual_longest([5, 9, 30]) == 30  # of a few none is odd
    assert usual_longest([*range(1, 40), 76]) == 76  # and none that is twice as long as another
    assert usual_longest([*range(1, 40), 77]) == 38


def test_labels_have_f1_by_row_by_label_and_together():
    rows = [{"labels": labels} for labels in (["a", "b"], ["a"], [], ["c"])]
    found = label_sets([["a"], ["a", "b"], [], ["a"]], rows)
    assert found["f1"] == pytest.approx((200 / 3 + 200 / 3 + 100 + 0) / 4)
    assert found["exact_match"] == 25
    assert found["micro_f1"] == pytest.approx(100 * 2 * 2 / (4 + 4))
    assert found["f1_a"] == pytest.approx(100 * 2 * 2 / (3 + 2))
    assert (found["f1_b"], found["f1_c"]) == (0, 0)
    assert found["macro_f1"] == pytest.approx(80 / 3)
    assert found["unfound"] == "0 of 1 rows of 'b', 0 of 1 rows of 'c'"
    nothing = label_sets([[], []], [{"labels": []}] * 2)
    assert (nothing["f1"], nothing["micro_f1"], nothing["macro_f1"]) == (100, 100, 100)


@pytest.mark.parametrize(
    ("metric", "form", "said"),
    [
        (
            "rouge",
            "prompt",
            "take loss, exact_match, contains, json_match, rougeL, chrf, balanced_accuracy, "
            "macro_f1 or FILE.py:function",
        ),
        ("exact_match", "label", "take accuracy, balanced_accuracy, macro_f1, loss"),
        ("mae", "choice", "take accuracy, loss"),
        ("my.py:score", "label", "does not score label rows"),
        ("loss", "score", "take mae"),
    ],
)
def test_a_metric_that_rows_cannot_be_scored_by_is_refused_with_those_that_they_can(
    metric, form, said
):
    refused(f"metric='{metric}' .*{said}", lambda: refuse_metric(metric, form))


def test_rouge_and_chrf_are_those_of_their_libraries_for_each_row():
    row, answer = {"response": "The lamp stands by the door."}, "A lamp stands there."
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(row["response"], answer)["rougeL"]
    assert row_value("rougeL")(answer, row, row) == 100 * expected.fmeasure > 0
    assert row_value("chrf")(answer, row, row) == sentence_chrf(answer, [row["response"]]).score > 0
    assert row_value("loss") is row_value("exact_match") is None


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(
        "def words(prompt, response, answer, row):\n"
        "    assert row['id'] == 7\n"
        "    return len(set(answer.split()) & {prompt, response})\n"
        "def nothing(prompt, response, answer, row): return None\n"
        "def endless(prompt, response, answer, row): return float('inf')\n"
        "number = 3\n"
    )
    return path


def test_a_users_function_sees_prompt_response_answer_and_all_columns_of_the_file(mine, tmp_path):
    asked = [
        {"prompt": "a", "response": "b", "id": 7},
        {"messages": [turn("user", "a"), turn("assistant", "b")], "id": 7},
        {"instruction": "a", "output": "b", "id": 7},
        {"question": "a", "answer": "b", "id": 7, "context": "c"},
    ]
    for row in asked:
        path = rows_file(tmp_path / "rows.jsonl", [row, {**row, "id": 8}, row])
        found = load_rows(str(path)).part([2, 0])
        assert "id" not in found.rows[0]
        assert found.as_read(0) == row
        scores = score_answers(found, ["b c", ""], [f"{mine}:words"])
        assert [one["my.py:words"] for one in scores.by_row] in ([1, 0], [0, 0])
        assert scores.metrics["my.py:words"] == next(iter(scores.metrics.values()))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my.py:none", r"my\.py:none cannot be loaded: KeyError\('none'\)"),
        ("my.py:number", "failed for 'b': TypeError"),
        ("my.py:words", r"metric=.*my\.py:words failed for 'b': KeyError\('id'\)"),
        ("my.py:nothing", "failed for 'b': TypeError"),
        ("my.py:endless", "gave inf for 'b': it must be finite"),
        ("broken.py:words", "cannot be loaded: SyntaxError"),
    ],
)
def test_a_fault_of_the_users_function_is_one_line_that_names_it(mine, name, said):
    (mine.parent / "broken.py").write_text("def words(:\n")
    row = {"prompt": "a", "response": "b"}
    refused(said, lambda: row_value(str(mine.parent / name))("b", row, row))


def test_a_function_of_no_file_is_refused_before_anything_is_trained(tmp_path):
    missing = f"{tmp_path / 'none.py'}:words"
    refused("there is no file", lambda: refuse_metric(missing, "prompt"), FileNotFoundError)


def test_a_function_that_only_a_saved_file_names_is_not_run():
    for metric in (None, "rougeL"):
        refuse_unnamed(metric, "runs/a")
    refused("runs/a is scored by x.py:f, .*only if you name it: add --metric x.py:f",
            lambda: refuse_unnamed("x.py:f", "runs/a"))  # fmt: skip


def test_recalls_of_classes_show_what_accuracy_hides():
    rows = [{"text": "t", "label": label} for label in ["ok"] * 16 + ["fraud"] * 4]
    found = classes(["ok"] * 20, rows)
    assert found == {
        "accuracy": 80, "balanced_accuracy": 50, "macro_f1": pytest.approx(100 * (8 / 9) / 2),
        "recall_fraud": 0, "recall_ok": 100, "unfound": "0 of 4 rows of 'fraud'",
    }  # fmt: skip
    assert "unfound" not in classes(["ok"] * 16 + ["fraud"] * 4, rows)


def written(*responses):
    """Rows whose responses a model writes."""
    protocol = TASKS["jsonl"].protocols["prompt"]
    return Rows([{"prompt": "p", "response": one} for one in responses], "prompt", (), "rows",
                protocol)  # fmt: skip


def test_a_text_that_names_a_class_is_scored_as_a_classifier_is():
    right = ["ok"] * 16 + ["fraud"] * 4
    answers = ["ok"] * 16 + ["fraud", "ok", "no idea", "none"]
    found = score_answers(written(*right), answers)
    assert found.metrics == pytest.approx({
        "exact_match": 85, "contains": 85, "balanced_accuracy": (100 + 25) / 2,
        "macro_f1": (100 * 32 / 33 + 200 / 5) / 2,  # what names no class is no third one
        "recall_fraud": 25, "recall_ok": 100,
    })  # fmt: skip
    each = [one["balanced_accuracy"] for one in found.by_row]
    assert sum(each) / 20 == pytest.approx(62.5)
    labels = [{"text": "t", "label": label} for label in right]
    assert classes(answers, labels)["balanced_accuracy"] == 62.5
    lost = score_answers(written(*right), ["ok"] * 20).metrics
    assert lost["unfound"] == "0 of 4 rows of 'fraud'"


def test_free_answers_are_no_classes_unless_the_metric_says_so():
    different = written(*map(str, range(12)))
    assert set(score_answers(different, ["3"] * 12).metrics) == {"exact_match", "contains"}
    asked = score_answers(different, ["3"] * 12, ["macro_f1"]).metrics
    assert next(iter(asked)) == "macro_f1"
    assert asked["balanced_accuracy"] == pytest.approx(100 / 12)
    assert not any(name.startswith("recall") for name in asked)
    long = written(*["a" * 41, "b" * 41] * 3)
    assert "macro_f1" not in score_answers(long, ["a"] * 6).metrics


def test_help_and_the_page_of_configs_list_every_metric():
    page = (ROOT / "docs/reference/configs.md").read_text(encoding="utf-8")
    for said in (names_in_words(), Recipe.model_fields["metric"].description, page):
        for form, names in NAMES.items():
            listed = f"{ROWS_CALLED.get(form, 'prompts and chats')}: {', '.join(names)}"
            assert listed in said


def test_errors_of_numbers_are_in_the_unit_of_the_rows_and_what_is_undefined_is_none():
    rows = [{"text": "t", "score": score} for score in (1000, 3000, 5000)]
    found = numbers([1000.0, 2000.0, 4000.0], rows)
    assert found["mae"] == pytest.approx(2000 / 3)
    assert found["rmse"] == pytest.approx((2e6 / 3) ** 0.5)
    assert found["r2"] == pytest.approx(1 - 2e6 / 8e6)
    assert found["pearson"] == pytest.approx(98.198, abs=1e-3)
    same = [{"text": "t", "score": 4}] * 3
    for answers, right in (([2000.0] * 3, rows), ([1.0, 2.0, 3.0], same), ([1.0], rows[:1])):
        found = numbers(answers, right)
        assert (found["pearson"], found["spearman"]) == (None, None)
        assert (found["r2"] is None) == (right != rows)


# Rows for the forms of a user's own file.
OWN = {
    "messages": TURNS,
    "prompt": ROWS,
    "choice": [
        {"prompt": "ice", "candidates": ["cold", "hot", "red"], "answer": n} for n in (0, 2)
    ],
    "labels": [{"text": "good", "labels": ["a", "b"]}, {"text": "bad", "labels": []}],
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
    if protocol.form == "labels":
        return st.sampled_from([[], ["a"], ["b", "a"], ["c"]])
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


def test_each_row_has_its_own_metrics():
    def each(name, protocol, answers, rows):
        return row_metrics(TASKS[name].protocols[protocol], answers, rows)

    right = "acceptable"  # of a class, though the main metric of the task is a correlation
    labels = [{"label": label} for label in (right, "unacceptable", right)]
    found = [[*one.values()] for one in each("cola", "classify", [right] * 3, labels)]
    assert found == [[100, 75], [0, 0], [100, 75]]  # accuracy, balanced_accuracy
    scores = [{"score": score} for score in (1000, "3000", 5000.0)]  # in the unit of the rows
    found = each("jsonl", "score", [1000.0, 5000.0, 4000.0], scores)
    assert found == [{"mae": 0}, {"mae": 2000}, {"mae": 1000}]
    texts = [{"prompt": "a", "response": " red lamp"}] * 3
    found = each("jsonl", "prompt", ["red lamp\n", "a red lamp.", "re d lamp"], texts)
    kinds = ((100, 100), (0, 100), (0, 0))
    assert found == [{"exact_match": e, "contains": c} for e, c in kinds]


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


def rows(*texts):
    return [{"response": text} for text in texts]


OUTPUTS = [
    "The minister said that taxes are rising.",
    "Ploaia a căzut toată ziua, iar râul s-a umflat.",
    "",
    "Nothing in common",
]
REFERENCES = rows(
    "A minister says taxes will rise.",
    "Ploaia a cazut toată ziua iar riul s-a umflat.",
    "Something was expected here.",
    "Fără legătură",
)


def test_rouge_is_the_mean_f1_of_stems_pairs_of_them_and_the_longest_common_sequence():
    right = rows("the cat lay on a mat", "he walked home")
    found = rouge(["the cat sat on the mat", "walking"], right)
    # Common: the, cat, on, mat of 6 and 6 words; "the cat" of 5 and 5 pairs; the, cat, on, mat.
    # Of the second row: walk of 1 and 3 words, so that precision is 1, recall 1/3 and F1 1/2.
    means = {"rouge1": (400 / 6 + 50) / 2, "rouge2": (100 / 5 + 0) / 2}
    assert found == pytest.approx({**means, "rougeL": means["rouge1"]})


def test_both_kinds_of_bleu_are_what_sacrebleu_says_and_plain_bleu_its_formula():
    references = [row["response"] for row in REFERENCES]
    normal = normalised_romanian()
    plain = sacrebleu.corpus_bleu(OUTPUTS, [references])
    own = sacrebleu.corpus_bleu(
        [normal(text) for text in OUTPUTS], [[normal(text) for text in references]],
        tokenize="none", force=True,
    )  # fmt: skip
    found = bleu(OUTPUTS, REFERENCES)
    assert found == pytest.approx({"bleu_ro": own.score, "bleu": plain.score})
    assert next(iter(found)) == "bleu_ro"
    # Over the whole set: 9 of 10 words, 7 of 8 pairs, 5 of 6 triples and 3 of 4 fours.
    found = bleu(["a b c d e", "k l m n o"], rows("a b c d f", "k l m n o"))["bleu"]
    assert found == pytest.approx(100 * (9 / 10 * 7 / 8 * 5 / 6 * 3 / 4) ** 0.25)


ROMANIAN = {
    "cedillas": ("Şi ţara, şi Ţapul", "Si tara , si Tapul"),
    "commas": ("Și țara, și Țapul", "Si tara , si Tapul"),
    "marks": ("Ăă Ââ Îî", "Aa Aa Ii"),
    "Romanian quotes": ("„da”", '" da "'),
    "nothing is escaped": ("R&D <a>", "R & D < a >"),
    "full-width comma": ("unu，doi", "unu , doi"),
    "control characters": ("unu\x07 doi", "unu doi"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("case", ROMANIAN)
def test_romanian_is_normalised(case):
    text, expected = ROMANIAN[case]
    assert normalised_romanian()(text) == expected


@pytest.mark.parametrize("metric", [rouge, bleu])
def test_empty_outputs_and_empty_references_score_nothing(metric):
    for outputs, references in ((["", ""], ["a b", "c"]), (["a b", "c"], ["", ""]), ([""], [""])):
        assert set(metric(outputs, rows(*references)).values()) == {0}


@pytest.mark.parametrize(
    ("metric", "module"),
    [(rouge, "rouge_score.rouge_scorer"), (bleu, "sacrebleu.metrics.bleu"), (bleu, "sacremoses")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(metric, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module}.* is missing: install the extra `metrics`"):
        metric(["a"], rows("a"))
