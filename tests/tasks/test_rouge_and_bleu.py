"""ROUGE and BLEU: by hand, beside their libraries, and of texts that are odd or not there."""

import sys

import pytest
import sacrebleu

from lorada.tasks.metrics import bleu, normalised_romanian, rouge


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


def test_rouge_is_the_f1_of_words_pairs_of_words_and_the_longest_common_sequence():
    found = rouge(["the cat sat on the mat"], rows("the cat lay on a mat"))
    # Common: the, cat, on, mat of 6 and 6 words; "the cat" of 5 and 5 pairs; the, cat, on, mat.
    assert found == pytest.approx({"rouge1": 400 / 6, "rouge2": 100 / 5, "rougeL": 400 / 6})


def test_rouge_weighs_precision_and_recall_alike_and_compares_stems():
    found = rouge(["walking"], rows("he walked home"))
    precision, recall = 1, 1 / 3
    assert found["rouge1"] == pytest.approx(200 * precision * recall / (precision + recall))
    assert found["rouge2"] == 0


def test_rouge_of_a_set_is_the_mean_over_rows():
    alone = [rouge([output], [row]) for output, row in zip(OUTPUTS, REFERENCES, strict=True)]
    together = rouge(OUTPUTS, REFERENCES)
    for name, value in together.items():
        assert value == pytest.approx(sum(one[name] for one in alone) / 4)


def test_both_kinds_of_bleu_are_what_sacrebleu_says():
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
