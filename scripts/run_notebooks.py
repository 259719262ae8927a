"""Runs the notebooks of examples/ and keeps their output. It needs no Jupyter.

    python scripts/run_notebooks.py                        # all of them
    python scripts/run_notebooks.py examples/trl.ipynb     # these

A cell may have lines that begin with ``!``, which a shell runs. Files that a notebook writes go to
a temporary folder. The output of a cell is what it prints, and what its last line gives.
"""

import ast
import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
LONGEST = 20_000  # characters of a value in HTML that are kept; a whole page would be a megabyte


def run(path: Path) -> None:
    """Run all code cells of a notebook in one namespace, and write their output into it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__", "shell": shell}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
            for number, cell in enumerate(cells, start=1):
                cell["outputs"] = outputs("".join(cell["source"]), names, number)
                cell["execution_count"] = number
        finally:
            os.chdir(here)
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def outputs(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Run one cell: what it prints, then the value of its last line."""
    tree = ast.parse(with_shell_calls(source))
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"<cell {number}>", "exec"), names)
        value = eval(compile(last, f"<cell {number}>", "eval"), names) if last else None
    found: list[dict[str, Any]] = []
    if text := printed.getvalue():
        found.append({"output_type": "stream", "name": "stdout", "text": lines(text)})
    if value is not None:
        found.append({
            "output_type": "execute_result", "execution_count": number, "metadata": {},
            "data": shown(value),
        })  # fmt: skip
    return found


def with_shell_calls(source: str) -> str:
    """A cell whose lines that begin with ``!`` are calls; a backslash continues such a line."""
    call = re.compile(r"^!((?:.*\\\n)*.*)$", re.MULTILINE)
    return call.sub(lambda found: f"shell({found[1]!r})", source)


def shell(command: str) -> None:
    """Run a command and print its output; raises CalledProcessError where it fails."""
    found = Path(sys.executable).parent
    done = subprocess.run(
        command, shell=True, stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "PATH": f"{found}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "110"},
    )  # fmt: skip
    print(done.stdout, end="")


def shown(value: Any) -> dict[str, Any]:
    """A value in the forms that a notebook shows: a picture, HTML, or text."""
    data: dict[str, Any] = {"text/plain": lines(repr(value))}
    if hasattr(value, "savefig"):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=80, bbox_inches="tight")
        data["image/png"] = base64.b64encode(picture.getvalue()).decode()
    elif hasattr(value, "_repr_html_") and len(page := value._repr_html_() or "") < LONGEST:
        data["text/html"] = lines(page)
    return data


def lines(text: str) -> list[str]:
    """A text as notebooks keep it, without the temporary folder and the colours of a terminal."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.replace(f"{Path.cwd()}/", ""))
    return plain.splitlines(keepends=True)


if __name__ == "__main__":
    for each in sys.argv[1:] or sorted(map(str, EXAMPLES.glob("*.ipynb"))):
        run(Path(each).resolve())
