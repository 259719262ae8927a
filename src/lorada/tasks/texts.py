"""Metrics of written texts: ROUGE and BLEU, in percent (the extra ``metrics``)."""

from collections.abc import Callable

from lorada.support.errors import needing
from lorada.support.progress import watched
from lorada.tasks.rows import Row, answer_of
from lorada.tasks.task import Metrics

# Romanian as the scripts for WMT16 leave it: letters with a cedilla become those with a comma,
# which Romanian has; then all letters lose their marks (Sennrich et al., 2016).
COMMAS = str.maketrans("ŞşŢţ", "ȘșȚț")
PLAIN = str.maketrans("ȘșȚțĂăÂâÎî", "SsTtAaAaIi")


def rouge(outputs: list[str], rows: list[Row]) -> Metrics:
    """ROUGE-1, ROUGE-2 and ROUGE-L: F1 in percent, the mean over rows (Lin, 2004).

    By rouge_score with Porter's stemmer. ROUGE-L takes a text as one sequence (rouge_score's
    ``rougeL``); for texts of one line, which XSum's are, ``rougeLsum`` is the same.
    """
    with needing("metrics"):
        from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, use_stemmer=True)
    pairs = watched(list(zip(outputs, rows, strict=True)), "ROUGE")
    found = [scorer.score(answer_of(row), output) for output, row in pairs]
    return {name: 100.0 * sum(one[name].fmeasure for one in found) / len(found) for name in names}


def bleu(outputs: list[str], rows: list[Row]) -> Metrics:
    """BLEU of the whole set in percent, by sacrebleu, in two ways (Papineni et al., 2002).

    ``bleu_ro``, as published for English to Romanian: both sides as ``normalised_romanian`` makes
    them, then no tokenisation of sacrebleu's. ``bleu``: both as they are, tokenised as 13a.
    """
    with needing("metrics"):
        from sacrebleu.metrics.bleu import BLEU

    references = [answer_of(row) for row in rows]
    romanian = normalised_romanian()
    # sacrebleu warns of texts that look tokenised, unless it is told that they are.
    own = BLEU(tokenize="none", force=True).corpus_score(
        [romanian(text) for text in outputs], [[romanian(text) for text in references]]
    )
    plain = BLEU().corpus_score(outputs, [references])
    return {"bleu_ro": float(own.score), "bleu": float(plain.score)}


def normalised_romanian() -> Callable[[str], str]:
    """A function that brings Romanian text into the form in which published BLEU counts it.

    Moses: punctuation in ASCII and normalised, no control characters; then cedillas to commas, no
    diacritics; then Moses' tokens with spaces between them, nothing escaped.
    """
    with needing("metrics"):
        from sacremoses import MosesPunctNormalizer, MosesTokenizer

    punctuation = MosesPunctNormalizer(
        lang="ro", pre_replace_unicode_punct=True, post_remove_control_chars=True
    )
    tokens = MosesTokenizer(lang="ro")

    def normalise(text: str) -> str:
        text = punctuation.normalize(text).translate(COMMAS).translate(PLAIN)
        return str(tokens.tokenize(text, return_str=True, escape=False))

    return normalise
