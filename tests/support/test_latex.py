"""Tables of texts: signs that LaTeX reads as commands are printed as they are."""

from lorada.support.tables import latex_table

SIGNS = r"[x] a&b #{c}_d 5% ~y ^z \w ¬N <i> |"
ESCAPED = (
    r"{}[x] a\&b \#\{c\}\_d 5\% \textasciitilde{}y \textasciicircum{}z \textbackslash{}w "
    r"$\neg$N $<$i> $|$"
)


def test_signs_that_latex_reads_are_printed_as_they_are():
    text = latex_table(["name", "score"], [[SIGNS, "–"]], 1, ["one\ntwo"])
    assert text.startswith("% one two\n")
    assert f"{ESCAPED} & -- \\\\" in text
