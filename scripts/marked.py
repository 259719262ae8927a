"""The part of a page that a script writes: what stands between its two marks."""

from pathlib import Path

END = "<!-- until here -->"


def with_part(page: str, script: str, part: str) -> str:
    """The page with the part of a script made anew; raises ValueError if it has no marks."""
    begin = f"<!-- written by {script} -->\n"
    before, found, rest = page.partition(begin)
    if not found:
        raise ValueError(f"the page has no line {begin.strip()}")
    return f"{before}{begin}{part}{rest[rest.index(END) :]}"


def write_part(page: Path, script: str, part: str) -> None:
    """Write the part of a script into its page."""
    text = page.read_text(encoding="utf-8")
    page.write_text(with_part(text, script, part), encoding="utf-8")
