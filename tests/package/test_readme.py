"""The README runs: its Python and its commands, on tiny local models."""

import io
import re
import shlex
import subprocess
import sys

import pytest
from conftest import TINY
from folders import bert_folder, llama_folder, rows_file, split_file
from paths import ROOT
from transformers import Trainer, TrainingArguments

from lorada import METHODS, EffectSize, cli
from lorada.inference.serving import server
from lorada.runs.models import loading, names

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 12
    rows = [{"input_ids": list(range(3, 11)), "labels": list(range(3, 11))}] * 8
    names = {
        "base": TINY["llama"](),
        "fresh_base": TINY["llama"](),
        "rows": rows,
        "args": TrainingArguments("out", max_steps=2, report_to=[], disable_tqdm=True),
        "Trainer": Trainer,
        "EffectSize": EffectSize,
    }
    exec(code, names)
    assert {p.name for p in (tmp_path / "my-adapter").iterdir()} >= {
        "adapter_model.safetensors", "adapter_config.json",
    }  # fmt: skip
    assert names["model"].active_adapters == ["default"]


@pytest.fixture
def tiny_smollm2(tmp_path, monkeypatch):
    """The commands of the README with tiny models under the names of the packaged ones."""
    folders = {
        "smollm2-135m": llama_folder(tmp_path / "model", hidden_size=256, intermediate_size=768),
        "minilm-l6": bert_folder(tmp_path / "bert", hidden_size=48, num_attention_heads=12),
    }
    monkeypatch.setattr(loading, "_packaged_folder", folders.get)
    monkeypatch.setattr(names, "package_folder", folders.get)
    rows = [{"sentence1": "ab" * (i % 3 + 1), "sentence2": "a", "label": i % 2} for i in range(16)]
    for split in ("train", "validation"):
        split_file(tmp_path / "DATA" / "glue" / "rte", split, rows)
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path / "rows.jsonl")
    rows_file(tmp_path / "held_out.jsonl")


def test_the_commands_of_the_readme_run(tiny_smollm2, monkeypatch, capsys):
    commands = [
        shlex.split(line, comments=True)
        for block in blocks("bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("lorada ")
    ]
    names = [words[1] for words in commands]
    assert names == [
        "train", "evaluate", "generate", "chat", "serve", "export", "explore", "compare",
        "train", "evaluate", "table",
    ]  # fmt: skip
    served = []
    monkeypatch.setattr(server, "serve_until_stopped", lambda app, *_: served.append(app))
    for words in commands:
        if words[1] == "serve":
            words += ["--port", "0"]
        if words[1] == "compare":  # trainings of every method take minutes: here they are planned
            words += ["--dry-run", "--allow-overlap"]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "stdin", io.StringIO("2 + 2 =\n/base\n/effect\n"))
        cli.main()
    assert "next:" in capsys.readouterr().out
    assert [app.routes[0].path for app in served] == ["/v1/chat/completions"]


def test_every_method_of_the_readme_is_one():
    table = README.split("<!-- methods -->")[1].split("<!-- end -->")[0]
    names = set(re.findall(r"`([a-z_]+)`", table))
    assert names == set(METHODS)


def test_the_make_targets_of_the_readme_exist():
    makefile = ROOT / "Makefile"
    targets = set(re.findall(r"`?make ([a-z-]+)", README))
    for target in targets:
        done = subprocess.run(
            ["make", "-n", "-f", makefile, target, "VENV=/nowhere"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_pictures_and_pages_of_the_readme_exist():
    targets = re.findall(r"\]\((?!https:)([^)]+)\)", README)
    assert any(target.endswith(".md") for target in targets)
    assert any(target.endswith(".png") for target in targets)
    for target in targets:
        assert (ROOT / target).is_file(), target
