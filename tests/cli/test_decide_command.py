"""``lorada decide``: scores of any trainer in, a verdict out."""

import json
import sys

import numpy as np
import pytest
from paths import ROOT
from programs import printed

import lorada

LORADA = (sys.executable, "-m", "lorada.cli")
LOGS = ROOT / "tests/decision/logs"


@pytest.fixture
def folder(tmp_path):
    """Scores of two methods and of a commonest answer, and the methods' costs."""
    random = np.random.default_rng(0)
    ease = random.normal(1, 1, 200)
    lines = ["method,seed,row,score,group"]
    for method, quality in (("lora", 0.6), ("ia3", 0.2), ("commonest", -9)):
        for seed in (1, 2, 3):
            right = random.random(200) < 1 / (1 + np.exp(-ease - quality))
            lines += [
                f"{method},{seed},{row},{int(one)},{row // 2}" for row, one in enumerate(right)
            ]
    (tmp_path / "scores.csv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "costs.yaml").write_text("lora: {parameters: 90}\nia3: {parameters: 30}\n")
    return tmp_path


@pytest.mark.more
def test_the_command_says_what_the_library_decides_and_needs_no_torch(folder):
    from lorada.data.files.read_rows import read_rows
    from lorada.decision.read_scores import read_scores

    words = ("decide", "scores.csv", "--costs", "costs.yaml", "--baseline", "commonest")
    found = json.loads(printed(*LORADA, *words, "--json", folder=folder))
    read = read_scores(read_rows(folder / "scores.csv"), "scores.csv")
    without = read.scores.pop("commonest").mean(axis=0)
    costs = {"lora": {"parameters": 90}, "ia3": {"parameters": 30}}
    expected = lorada.decide(
        read.scores, costs, groups=read.groups, baselines={"commonest": without}
    )
    assert found["sentence"] == expected.sentence
    assert found["expected_loss"] == expected.expected_loss
    shown = printed(*LORADA, *words, folder=folder)
    assert " ".join(shown.split()).startswith(expected.sentence)
    again = "lorada decide scores.csv --baseline commonest --costs costs.yaml --json"
    assert shown.rstrip().endswith(f"next: {again}")
    losses = ("--lower-is-better", "--margin", "2")  # which the command to go on with repeats
    shown_losses = printed(*LORADA, *words[:2], "--unit", "nats", *losses, folder=folder)
    again = "lorada decide scores.csv --margin 2 --unit nats --lower-is-better --json"
    assert shown_losses.rstrip().endswith(f"next: {again}")
    (line,) = (line for line in shown.splitlines() if line.startswith("lora "))
    assert line.split()[4] == expected.letters["lora"]
    assert "• 200 rows in 100 groups, 3 runs of each method. Methods that share a letter" in shown
    code = (
        "import sys, lorada.cli; sys.argv = ['lorada', 'decide', 'scores.csv']\n"
        "try: lorada.cli.main()\nfinally: assert 'torch' not in sys.modules"
    )
    assert printed(sys.executable, "-c", code, folder=folder)


@pytest.mark.first
def test_a_margin_decides_and_the_command_to_go_on_with_repeats_what_was_given(
    folder, works, monkeypatch
):
    monkeypatch.chdir(folder)
    words = ("decide", "scores.csv", "--baseline", "commonest", "--costs", "costs.yaml")
    for margin, taken in (("0", "lora"), ("99", "ia3")):  # 99 points worse is no worse
        shown, _ = works(*words, "--margin", margin)
        assert shown.startswith(f"Take {taken} (")
        assert shown.rstrip().endswith(f"next: lorada {' '.join(words[:4])} --margin {margin} "
                                       "--costs costs.yaml --json")  # fmt: skip
    losses = ("--unit", "nats", "--lower-is-better")
    shown, _ = works("decide", "scores.csv", *losses)
    assert shown.rstrip().endswith("next: lorada decide scores.csv --unit nats --lower-is-better "
                                   "--json")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lm_eval", "--metric", "acc"), "acc of picks, from logs of lm-eval: ia3 (seeds 1, 2), "),
        (("inspect/seeds", "--baseline", "ia3"), "exact of sums, from logs of Inspect: ia3 (seeds"),
        (("promptfoo/repeats.json",), "pass, from logs of promptfoo: lora, ia3."),
    ],
)
def test_logs_of_other_tools_are_a_set_of_methods_and_seeds(works, monkeypatch, words, said):
    monkeypatch.chdir(LOGS)
    shown, _ = works("decide", *words)
    text = " ".join(shown.split())
    assert f"• {said}" in text
    assert "• 3 rows, 2 runs of each method." in text
    assert shown.rstrip().endswith(f"next: lorada decide {' '.join(words)} --json")
    as_json, notes = works("decide", *words, "--json")
    assert json.loads(as_json)["sentence"] in text
    assert said in " ".join(notes.split())


def test_the_unit_of_other_scores_is_given(folder):
    random = np.random.default_rng(0)
    lines = ["Method,Seed,Row,Score"]
    for method, mean in (("lora", 70), ("ia3", 69.9)):
        for seed in (1, 2, 3):
            rouge = random.normal(mean, 5, 400)
            lines += [f"{method},{seed},{row},{one}" for row, one in enumerate(rouge)]
    (folder / "rouge.csv").write_text("\n".join(lines), encoding="utf-8")
    words = ("decide", "rouge.csv", "--costs", "costs.yaml")
    shown = " ".join(printed(*LORADA, *words, folder=folder).split())
    assert "such as 0.0" in shown
    assert "or the unit % if scores are percent" in shown
    known = printed(*LORADA, *words, "--unit", "%", folder=folder)
    assert known.startswith("Take ia3 (")
    assert known.rstrip().endswith("--unit % --costs costs.yaml --json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing.csv",), "'scores': path 'nothing.csv' does not exist"),
        ((".",), ". has no logs with scores of rows, such as lm-eval's samples_*.jsonl"),
        (("scores.csv", "--metric", "acc"), "--metric acc is for logs, but scores.csv is a table"),
        ((str(LOGS / "lm_eval"),), "lm_eval has 5 metrics: pass --metric acc or acc_norm or"),
        (
            (str(LOGS / "lm_eval"), "--metric", "acc", "--lower-is-better"),
            "says that a higher acc is better",
        ),
        (("empty.csv",), "empty.csv has no rows"),
        (("scores.csv", "--costs", "nothing"), "'--costs': file 'nothing' does not exist"),
        (("scores.csv", "--baseline", "commonst"), "did you mean commonest?"),
        (("scores.csv", "--alternative", "commonst"), "did you mean commonest?"),
        (
            ("scores.csv", "--alternative", "commonest", "--baseline", "commonest"),
            "commonest is a baseline and an alternative: leave one of them out",
        ),
        (("scores.csv", "--margin", "-1"), "margin=-1.0 is no number of points: give 0 or more"),
        (("costs.yaml",), "costs.yaml is not JSON"),
    ],
)
def test_a_mistake_is_one_line(folder, mistake, monkeypatch, words, said):
    monkeypatch.chdir(folder)
    (folder / "empty.csv").touch()
    assert said in mistake("decide", *words)


def test_what_may_be_taken_instead_of_a_training_is_in_the_table_and_the_gain(
    folder, works, json_of, monkeypatch
):
    monkeypatch.chdir(folder)
    lines = (folder / "scores.csv").read_text().splitlines()
    is_right = [line.split(",") for line in lines if line.startswith("lora,1,")]
    assert len(is_right) == 200
    for seed, shift in ((1, 0), (2, 7)):  # as good as lora, on other rows with another draw
        for place, (_, _, row, _, group) in enumerate(is_right):
            lines.append(f"gpt-4,{seed},{row},{is_right[place - shift][3]},{group}")
    (folder / "scores.csv").write_text("\n".join(lines))
    words = ("decide", "scores.csv", "--baseline", "commonest", "--alternative", "gpt-4")
    found = json_of(*words)
    assert found["alternatives"].keys() == {"gpt-4"}
    assert "gpt-4" not in found["scores"]
    assert found["unlearned"] == []
    gain = found["gain"]
    assert (gain["over"], gain["is_shown"]) == ("gpt-4", False)
    assert gain["low"] < 0 < gain["high"]
    shown, _ = works(*words)
    said = " ".join(shown.split())
    assert said.startswith("Do not tune yet: ")
    assert "is not shown to be better than gpt-4" in said
    (line,) = (line for line in shown.splitlines() if line.startswith("gpt-4 "))
    assert line.split()[1] == f"{found['alternatives']['gpt-4']:.1f}"
    again = "lorada decide scores.csv --baseline commonest --alternative gpt-4 --json"
    assert shown.rstrip().endswith(f"next: {again}")
