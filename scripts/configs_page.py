"""Writes docs/reference/configs.md: every config with each field, its type, default and meaning.

    python scripts/configs_page.py

The source of configs is read and not imported, so this takes neither torch nor PEFT.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from lorada.support.metric_names import names_in_words

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "configs.md"
SOURCE = ROOT / "src"
SHARED = ("lorada.tuners.base.part_config", "LoradaPeftConfig")
RECIPE = ("lorada.runs.recipe", "Recipe")
HEADER = """\
# Configs

Every config of lorada is a PEFT config: a keyword for each field, saved in `adapter_config.json`. A
field that is left out has its default. On the command line a field is a setting of its part, such
as `lmam.rank=4`. `make pages` writes this page.
"""
INTRO = {
    SHARED: "The fields that all configs above have too.",
    RECIPE: "Each is a word `name=value` of `lorada train`, or a line of a recipe file.",
}
# Defaults that are no value that a reader could write.
SHOWN = {
    "": "required", "_by_placement()": "by placement", "LIBRARY": "a note", "USAGE": "a note",
    "__version__": "this version", "AUTO": "`'auto'`",
}  # fmt: skip
# Descriptions that the source computes from a table.
COMPUTED = {"names_in_words()": names_in_words()}


def page() -> str:
    """The whole page."""
    found = [*configs(), SHARED, RECIPE]
    return HEADER + "".join(section(module, name) for module, name in found)


def configs() -> list[tuple[str, str]]:
    """Module and name of every config, stacks first, that ``lorada.tuners`` imports."""
    tree = ast.parse((SOURCE / "lorada/tuners/__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    found = [
        (node.module, alias.name)
        for node in imports
        for alias in node.names
        if node.module and alias.name.endswith("Config")
    ]
    return sorted(found, key=lambda each: (each[1] != "LoradaConfig", each[1]))


def section(module: str, name: str) -> str:
    """The heading of a class, what it is, and its fields."""
    node = class_of(module, name)
    what, described = docstring_of(node)
    rows = [
        f"| `{field}` | {type_of(annotation)} | {default} | {meaning or described[field]} |"
        for field, annotation, default, meaning in fields(node)
    ]
    anchor = (
        f"lorada.{name}" if name.endswith("Config") and name != SHARED[1] else f"{module}.{name}"
    )
    intro = INTRO.get((module, name))
    return "\n".join([
        "", f"## {name} {{ #{anchor} }}", "", " ".join(filter(None, [what, intro])), "",
        "| field | type | default | meaning |", "|---|---|---|---|", *rows, "",
    ])  # fmt: skip


def class_of(module: str, name: str) -> ast.ClassDef:
    """The class in the source of a module."""
    path = SOURCE / f"{module.replace('.', '/')}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)


def docstring_of(node: ast.ClassDef) -> tuple[str, dict[str, str]]:
    """What stands above the attributes of a docstring, and each attribute's meaning."""
    text = ast.get_docstring(node) or ""
    above, _, below = text.partition("\n\nAttributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in below.partition("\n\n")[0].splitlines():
        if line.startswith("     "):
            found[name] += f" {line.strip()}"
        else:
            name, _, first = line.strip().partition(": ")
            found[name] = first
    return " ".join(above.split()), found


def fields(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr, str, str]]:
    """Name, annotation, default and description (of a recipe's field) of each field."""
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        value = item.value
        named = (
            {key.arg: key.value for key in value.keywords} if isinstance(value, ast.Call) else {}
        )
        default = ast.unparse(value) if value is not None else ""
        if "default" in named:
            default = ast.unparse(named["default"])
        elif "default_factory" in named:
            default = {"list": "[]", "dict": "{}"}[ast.unparse(named["default_factory"])]
        elif "description" in named:
            assert isinstance(value, ast.Call)
            default = ast.unparse(value.args[0]) if value.args else ""
        meaning = described(named["description"]) if "description" in named else ""
        yield item.target.id, item.annotation, SHOWN.get(default, f"`{default}`"), meaning


def described(value: ast.expr) -> str:
    """The text of a description."""
    written = ast.unparse(value)
    return COMPUTED[written] if written in COMPUTED else str(ast.literal_eval(value))


def type_of(annotation: ast.expr) -> str:
    """An annotation in words: ``int or None``."""
    parts: list[str] = []
    while isinstance(annotation, ast.BinOp):
        parts.insert(0, ast.unparse(annotation.right))
        annotation = annotation.left
    parts.insert(0, ast.unparse(annotation))
    plain = [re.sub(r"Annotated\[(\w+), .*?\)\]", r"\1", part) for part in parts]
    words = {
        "Count": "int above 0",
        "Number": "float above 0",
        "Rate": "float in [0, 1)",
        "Times": "text such as 0.4x",
    }
    shown = [part if part == "None" else f"`{words.get(part, part)}`" for part in plain]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
