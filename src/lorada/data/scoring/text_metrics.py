"""ROUGE, chrF and BLEU of a model's answers, by the libraries of the extra ``metrics``."""

from collections.abc import Callable

from lorada.data.rows.row_content import answer_of
from lorada.data.task import Metrics
from lorada.support.error_messages import needs_extra
from lorada.support.row_sources import Row

# The scripts for WMT16 (Sennrich et al., 2016) replace letters with a cedilla by the Romanian ones
# with a comma, then remove the marks from all letters.
COMMAS = str.maketrans("ŞşŢţ", "ȘșȚț")
PLAIN = str.maketrans("ȘșȚțĂăÂâÎî", "SsTtAaAaIi")


def rouge(outputs: list[str], rows: list[Row]) -> Metrics:
    """ROUGE-1, ROUGE-2 and ROUGE-L: F1 in percent, the mean over rows (Lin, 2004).

    rouge_score computes them, with Porter's stemmer. ROUGE-L reads a text as one sequence
    (``rougeL``); for texts of one line, such as XSum's, ``rougeLsum`` is the same.
    """
    with needs_extra("metrics"):
        from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, use_stemmer=True)
    totals = dict.fromkeys(names, 0.0)
    for output, row in zip(outputs, rows, strict=True):
        scores = scorer.score(answer_of(row), output)
        for name in names:
            totals[name] += 100.0 * scores[name].fmeasure
    return {name: total / len(rows) for name, total in totals.items()}


def rouge_l(output: str, row: Row) -> float:
    """The ROUGE-L of an output, as ``rouge`` computes it."""
    return float(rouge([output], [row])["rougeL"])


def chrf(output: str, row: Row) -> float:
    """The sentence-level chrF2 of an output by sacrebleu (Popović, 2015)."""
    with needs_extra("metrics"):
        from sacrebleu import sentence_chrf

    return float(sentence_chrf(output, [answer_of(row)]).score)


def bleu(outputs: list[str], rows: list[Row]) -> Metrics:
    """BLEU of the whole set in percent, by sacrebleu, in two ways (Papineni et al., 2002).

    ``bleu_ro``, as published for English to Romanian: outputs and references are normalised by
    ``normalised_romanian``, and sacrebleu does not tokenise them again. ``bleu``: nothing is
    normalised, and sacrebleu tokenises with its default, 13a. A set of one row has sacrebleu's
    sentence-level BLEU, which leaves out n-grams that are longer than the text.
    """
    with needs_extra("metrics"):
        from sacrebleu.metrics.bleu import BLEU

    references = [answer_of(row) for row in rows]
    is_sentence = len(rows) == 1
    normalise = normalised_romanian()
    normal_outputs = [normalise(text) for text in outputs]
    normal_references = [normalise(text) for text in references]
    # Without ``force``, sacrebleu warns that the texts look tokenised.
    scorer = BLEU(tokenize="none", force=True, effective_order=is_sentence)
    bleu_ro = scorer.corpus_score(normal_outputs, [normal_references])
    plain = BLEU(effective_order=is_sentence).corpus_score(outputs, [references])
    return {"bleu_ro": float(bleu_ro.score), "bleu": float(plain.score)}


def normalised_romanian() -> Callable[[str], str]:
    """A function that normalises Romanian text as published BLEU scores do.

    In order: Moses makes punctuation ASCII and removes control characters; cedillas become commas;
    letters lose their marks; Moses splits the text into tokens, joined by spaces, without escapes.
    """
    with needs_extra("metrics"):
        from sacremoses import MosesPunctNormalizer, MosesTokenizer

    punctuation = MosesPunctNormalizer(
        lang="ro", pre_replace_unicode_punct=True, post_remove_control_chars=True
    )
    tokens = MosesTokenizer(lang="ro")

    def normalise(text: str) -> str:
        text = punctuation.normalize(text).translate(COMMAS).translate(PLAIN)
        return str(tokens.tokenize(text, return_str=True, escape=False))

    return normalise
