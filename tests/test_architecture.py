"""The layout: which file may import which, and how long files and functions are.

An import counts wherever it stands, in a function too, as does the name of a thing that is loaded
when it is needed (``"lorada.methods.snip:snip"``).
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter

import pytest
from paths import ROOT

SOURCE = ROOT / "src" / "lorada"
FILES = sorted(SOURCE.rglob("*.py"))
LOADED = re.compile(r"(lorada(?:\.\w+)+):\w+")

# Each folder of the package, from the lowest to the highest, and the lower ones that it may not
# import; "lorada" are the names of the package itself.
MAY_NOT_IMPORT = {
    "support": "",
    "decision": "",
    "functional": "decision",
    "runs": "decision functional",
    "data": "decision functional",
    "attention": "decision runs data",
    "tuners": "decision runs data",
    "methods": "decision functional runs data",
    "training": "decision functional",
    "testing": "decision functional runs data training",
    "inference": "decision functional",
    "explore": "decision",
    "compare": "functional attention explore",
    "paper": "attention explore",
    "lorada": "attention paper",
    "cli": "functional attention tuners",
}
FLOORS = [*MAY_NOT_IMPORT]


def name_of(path):
    """The name of a file as a module."""
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def room_of(module):
    """The folder of the package that a module lies in."""
    return (module.removeprefix("lorada.")).split(".")[0]


def imported_modules(path):
    """What a file imports, late or only for a type checker too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from inner
            if len(inner) < len(node.names):
                yield node.module
        elif isinstance(node, ast.Constant) and (found := LOADED.fullmatch(str(node.value))):
            yield found[1]


def own_imports(path):
    """The modules of ours that a file imports."""
    return {module for module in imported_modules(path) if module in MODULES}


def test_imports_follow_the_layout():
    for name, path in MODULES.items():
        room = room_of(name)
        lower = {*FLOORS[: FLOORS.index(room)]} - {*MAY_NOT_IMPORT[room].split()}
        for module in own_imports(path):
            assert room_of(module) in {room, *lower}, f"{name} imports {module}"


def test_no_files_import_each_other_in_a_circle():
    imports = {name: own_imports(path) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        ("tuners/base/*.py", r"lorada\.tuners(?!\.base)"),
        ("training/models/*.py", r"lorada\.training\.(train|trainer|setup|arguments|finish)"),
        ("compare/jobs/*.py", r"lorada\.(methods|compare(?!\.jobs))"),
        ("data/files/*.py", r"lorada\.data\.(?!files|task$)"),
        ("data/forms/*.py", r"lorada\.data\.(rows|scoring|tokenize|tasks$)"),
        ("data/rows/*.py", r"lorada\.data\.(scoring|tokenize)"),
    ],
)
def test_imports_within_a_folder_follow_the_layout(files, refused):
    paths = list(SOURCE.glob(files))
    assert paths
    for path in paths:
        for module in imported_modules(path):
            assert not re.match(refused, module), f"{path.name} imports {module}"


# What a command needs before it can say that something is mistyped.
@pytest.mark.parametrize(
    "files", ["support/*.py", "runs/*.py", "decision/*.py", "compare/report/*.py"]
)
def test_what_reads_and_reports_needs_no_torch(files):
    heavy = {"torch", "transformers", "peft", "datasets"}
    for path in SOURCE.glob(files):
        lines = ast.parse(path.read_text()).body
        froms = {line.module for line in lines if isinstance(line, ast.ImportFrom)}
        names = {a.name for line in lines if isinstance(line, ast.Import) for a in line.names}
        at_once = {str(name).split(".")[0] for name in froms | names}
        assert not heavy & at_once, path


def test_only_one_file_knows_the_attention_interface():
    names = ("ALL_ATTENTION_FUNCTIONS", "AttentionInterface")
    users = [p.name for p in FILES if any(name in p.read_text() for name in names)]
    assert users == ["interface.py"]


OF_USERS = ("decide", "compare_methods")  # Python's commands


def test_files_and_functions_stay_short():
    """And take few parameters, but for what has users' options: the commands, and two functions."""
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 60, f"{path}: {node.name}"
                given = node.args
                count = len(given.posonlyargs + given.args + given.kwonlyargs)
                has_options = path.parent.name == "cli" or node.name in OF_USERS
                assert count <= 8 or has_options, f"{path}: {node.name} has {count}"


def test_nothing_unpickles():
    for path in FILES:
        text = path.read_text()
        assert "torch.load" not in text, path
        assert "pickle" not in set(imported_modules(path)), path


def test_the_files_to_read_first_are_short_together():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d\. `([a-z_/]+\.py)`", page.split("## Read the code")[1], re.MULTILINE)
    assert len(listed) == 5
    assert sum(len((SOURCE / name).read_text().splitlines()) for name in listed) <= 900
