"""ROUGE and BLEU: by hand, beside their libraries, and of texts that are odd or not there."""

import sys

import pytest
import sacrebleu

from lorada.data.metrics import bleu, normalised_romanian, rouge


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


def test_letters_spelled_another_way_cost_plain_bleu_only():
    found = bleu(
        ["Şi ţara noastră are nevoie de „pace” acum."],
        rows('Și țara noastră are nevoie de "pace" acum.'),
    )
    assert found["bleu_ro"] == pytest.approx(100)
    assert found["bleu"] < 60


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
