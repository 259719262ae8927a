"""The package of the guide on methods of one's own, which tests import, also with planted bugs."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from paths import ROOT
from peft import mapping

from lorada.methods import check_overrides, lookup, peft_method
from lorada.support.outside_packages import ALLOWED

GUIDE = ROOT / "docs/guides/your-method.md"
# The tables that an import of such a package writes into.
TABLES = (
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
    mapping.PEFT_TYPE_TO_TUNER_MAPPING,
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    peft_method._BY_PART,
)
CACHES = (lookup.method_named, check_overrides.settings_of, check_overrides.names_of)


def source() -> str:
    """The file ``gainlora.py`` of the guide."""
    return re.search(r"```python\n(# gainlora\.py\n.*?)```", GUIDE.read_text(), re.S)[1]


def write(folder: Path, before: str = "", after: str = "") -> Path:
    """Write the package into a folder, one text in it changed."""
    text = source()
    assert before in text
    path = folder / "gainlora.py"
    path.write_text(text.replace(before, after) if before else text)
    return path


@contextmanager
def forgotten_after(monkeypatch) -> Iterator[None]:
    """Undo at the end what an import of the package has left in this process."""
    monkeypatch.setenv(ALLOWED, "")  # which is undone after what tests have put there
    monkeypatch.setattr(sys, "path", list(sys.path))
    saved_tables = [dict(table) for table in TABLES]
    yield
    for table, saved in zip(TABLES, saved_tables, strict=True):
        table.clear()
        table.update(saved)
    for cache in CACHES:
        cache.cache_clear()
    sys.modules.pop("gainlora", None)


def load(folder: Path) -> ModuleType:
    """Import the package from a folder, as a user's own program does."""
    module = ModuleType("gainlora")
    sys.modules["gainlora"] = module
    exec(compile((folder / "gainlora.py").read_text(), "gainlora.py", "exec"), module.__dict__)
    return module
