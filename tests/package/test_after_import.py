"""A module of ours is imported behind another package, however that comes to be imported."""

import sys

import pytest
from programs import printed

START = """
import sys
from lorada import _after_import
"""
WAYS = {
    "before it is asked for": "import theirs; {}",
    "by a part of it": "{}; from theirs.part import __name__",
    "by ours": "{}; import ours",
    "after a look": (
        "{}; from importlib.util import find_spec; assert find_spec('theirs'); "
        "assert 'ours' not in sys.modules; import theirs"
    ),
    "at the second try": (
        "{}; import os; os.environ['FAILS'] = '1'\n"
        "try: import theirs\nexcept ImportError: del os.environ['FAILS']\nimport theirs"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_ours_is_imported_once_behind_theirs(way, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text(
        "import os\nif 'FAILS' in os.environ: raise ImportError('not yet')\n"
        "print('begins')\nimport theirs.part\nprint('ends')\n"
    )
    (tmp_path / "theirs" / "part.py").touch()
    (tmp_path / "ours.py").write_text("import theirs\nprint('ours', theirs.part.__name__)\n")
    code = START + WAYS[way].format("_after_import('theirs', 'ours')")
    ending = "\nassert 'theirs' not in [getattr(f, 'module', None) for f in sys.meta_path]"
    said = printed(sys.executable, "-c", code + ending, folder=tmp_path)
    assert said.splitlines() == ["begins", "ends", "ours theirs.part"]
