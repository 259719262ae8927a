"""The table of methods and the counts in the README are those of the package."""

import write_readme
from paths import ROOT

PAGE = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_what_its_script_writes():
    assert write_readme.written(PAGE) == PAGE, "run: python scripts/write_readme.py"


def test_a_method_without_settings_for_a_kind_of_model_is_named(monkeypatch):
    monkeypatch.setitem(
        write_readme.METHODS, "only_decoders", write_readme.Method("x", {"llama": {"lora": {}}})
    )
    table = write_readme.method_table()
    assert "`longlora`, `only_decoders` | LoRA and its variants |" in table
    assert "Without settings for encoders: `only_decoders`." in table
    assert "Without settings for decoders" not in table
