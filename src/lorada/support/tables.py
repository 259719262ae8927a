"""Tables of texts as Markdown and LaTeX, for the paper's tables and for comparisons."""

from collections.abc import Iterable, Sequence

NOTHING = "–"  # text of a cell without a number
# Characters that LaTeX reads as commands or that its text fonts lack.
LATEX = str.maketrans({
    **{sign: f"\\{sign}" for sign in "&#{}_%$"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    NOTHING: "--",
    "¬": r"$\neg$",
    "<": "$<$",
    "|": "$|$",
    "±": r"$\pm$",
})  # fmt: skip


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> list[str]:
    """The lines of a Markdown table; the first ``texts`` columns are not numbers."""
    rule = "|" + "---|" * texts + "--:|" * (len(header) - texts)
    return [_bar(header), rule, *map(_bar, rows)]


def latex_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], texts: int, comments: Iterable[str]
) -> str:
    """A LaTeX ``tabular`` for booktabs, below comments; the arguments are ``markdown_table``'s."""
    lines = [f"% {' '.join(comment.split())}" for comment in comments]
    lines += [rf"\begin{{tabular}}{{{'l' * texts}{'r' * (len(header) - texts)}}}", r"\toprule"]
    lines += [_ampersands(header), r"\midrule", *map(_ampersands, rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _ampersands(cells: Sequence[str]) -> str:
    """A line for LaTeX, which would read a leading [ or * as part of the line before."""
    first, *rest = (" ".join(cell.split()).translate(LATEX) for cell in cells)
    first = f"{{}}{first}" if first.startswith(("[", "*")) else first
    return f"{' & '.join([first, *rest])} \\\\"
