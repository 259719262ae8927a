"""The paper's figures from a real run, and what the commands that draw them refuse."""

import importlib
import json
import sys

import pytest
import torch
from folders import rows_file, t5_folder
from trained_runs import run_recipe

from lorada import explain
from lorada.compare.jobs.job import Outcome
from lorada.explore.page_data import ratios_by_layer, sentence_maps
from lorada.inference.load import load_run
from lorada.paper import figures as plots
from lorada.paper import table_runs
from lorada.paper.figures import sweep_figure
from lorada.runs.result import RowsMetrics, RunResult, StoredRecipe
from lorada.training.train import train
from lorada.tuners.lmam import map_configs

TEXT = "the cat sat"


@pytest.fixture(scope="module")
def runs(place):
    """A run with maps on a tiny encoder, a tiny decoder and a tiny T5, and one without a map."""
    t5_folder(place / "t5")
    pair = {"text": "ab", "text_pair": "ba c"}
    rows_file(place / "pairs.jsonl", [{**pair, "label": label} for label in "nyny"])
    for name, method in (
        ("bert", "lmam"), ("pairs", "lmam"), ("llama", "lmam"), ("t5", "lmam"), ("plain", "lora"),
    ):  # fmt: skip
        model = {"plain": "llama", "pairs": "bert"}.get(name, name)
        rows = {"bert": "labels", "pairs": "pairs"}.get(name, "rows")
        settings = ["max_steps=3", "report_to=[]", f"eval_data={place / rows}.jsonl"]
        asked = run_recipe(settings, place, place / name, model=model, rows=rows, method=method)
        train(asked, quiet=True)
    return place


@pytest.fixture
def drawn(monkeypatch):
    """The figures that a test draws, instead of their files."""
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize(("name", "layers"), [("bert", 2), ("llama", 2), ("t5", 4)])
def test_the_maps_of_a_sentence_add_up_and_have_one_row_a_token(runs, name, layers):
    found = sentence_maps(load_run(runs / name), TEXT)
    softmax, map_, fused = (torch.tensor(values) for values, _ in found["maps"].values())
    count = len(found["tokens"])
    assert fused.shape == (count, count)
    assert (fused - softmax - map_).abs().max() < 1e-6
    below = int((map_ < 0).sum())
    # The last layer of a T5 is its decoder's.
    pairs = count * count if name == "bert" else count * (count + 1) // 2
    assert found["maps"]["LMAM (Attn_s)"][1] == pytest.approx(below / pairs)
    assert len(found["layers"]) == layers  # of a T5 those of the encoder, then of the decoder
    assert all(one["relative_norm"] > 0 for one in found["layers"])


def test_ratios_by_layer_are_means_over_rows(runs):
    run = load_run(runs / "bert")
    one, two = (ratios_by_layer(run, count)["layers"] for count in (1, 2))
    texts = [json.loads(line)["text"] for line in (runs / "labels.jsonl").open()]
    each = [sentence_maps(run, text)["layers"] for text in texts[:2]]
    for index in range(2):
        assert one[index]["negative_ratio"] == pytest.approx(each[0][index]["negative_ratio"])
        mean = sum(e[index]["map_negative_ratio"] for e in each) / 2
        assert two[index]["map_negative_ratio"] == pytest.approx(mean)


def test_rows_of_another_form_than_the_run_has_learned_are_shown_in_their_own(runs, tmp_path):
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    chats = rows_file(tmp_path / "chats.jsonl", [{"messages": turns}])
    run = load_run(runs / "llama")
    (found,) = {len(one["map"]) for one in ratios_by_layer(run, 1, str(chats))["layers"]}
    assert found == len(run.tokenizer("<|user|>ab<e><|assistant|>")["input_ids"])


@pytest.mark.parametrize(("what", "name"), [("1", "figure1"), ("3", "figure3")])
def test_a_figure_of_a_run_is_drawn(what, name, runs, tmp_path, works):
    text = ("--text", TEXT) if what == "1" else ()
    out, _ = works("plot", what, runs / "bert", "--output", tmp_path, "--rows", 2, *text)
    assert "next: lorada" in out
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"{name}{suffix}").stat().st_size > 5000


def test_a_run_that_learned_pairs_is_shown_on_a_pair(runs, tmp_path, works, mistake):
    """What figure 3 of such a run suggests can be run."""
    run, there = runs / "pairs", ("--output", tmp_path)
    out, _ = works("plot", "3", run, *there, "--rows", 2)
    assert f"next: lorada plot 1 {run} --text TEXT --text-pair TEXT" in out
    out, _ = works("plot", "1", run, *there, "--text", "ab", "--text-pair", "c")
    assert f"next: lorada explore {run} --text TEXT --text-pair TEXT" in out
    page = tmp_path / "page.html"
    out, _ = works("explore", run, "--text", "ab", "--text-pair", "c", "--output", page)
    assert f"next: lorada predict {run} --data FILE" in out
    loaded = load_run(run)
    found = sentence_maps(loaded, ("ab", "c"))
    given = loaded.tokenizer("ab", "c", return_tensors="pt")
    softmax = torch.tensor(found["maps"]["softmax (Attn)"][0])
    expected = explain(loaded.model, given)[-1].softmax[0, found["head"]]
    assert (softmax - expected).abs().max() < 1e-6
    assert "add the other with --text-pair" in mistake("plot", "1", run, "--text", "ab")
    said = mistake("plot", "1", runs / "bert", "--text", "ab", "--text-pair", "c")
    assert "has learned single texts, not pairs: leave --text-pair out" in said


def test_figure_1_shows_the_head_that_is_asked_for(runs, drawn, works, mistake):
    works("plot", "1", runs / "bert", "--text", TEXT, "--head", 0)
    assert ", head 0" in drawn[0].get_suptitle()
    said = mistake("plot", "1", runs / "bert", "--text", TEXT, "--head", 9)
    assert said.startswith("error: head=9: the layer has the heads 0 to ")


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_figure_3_shows_all_of_a_map_where_it_is_asked_for(runs, name):
    run = load_run(runs / name)
    for layer, part in zip(
        ratios_by_layer(run, 1, whole=True)["layers"],
        ratios_by_layer(run, 1)["layers"],
        strict=True,
    ):
        whole, shown = torch.tensor(layer["map"]), torch.tensor(part["map"])
        size = len(shown)
        assert len(whole) == map_configs(run.model)[0].length > size
        assert (whole[:size, :size] - shown).abs().max() < 1e-6


def test_a_panel_of_figure_3_is_titled_with_the_ratio_of_the_map_it_shows(runs, drawn, works):
    works("plot", "3", runs / "bert", "--rows", 2)
    run = load_run(runs / "bert")
    text = json.loads((runs / "labels.jsonl").open().readline())["text"]
    shown = {axis.get_title(): axis for axis in drawn[0].axes}
    explained = explain(run.model, run.tokenizer(text, return_tensors="pt"))
    for index in range(2):
        ratio = float(explained[index].map_negative[0])
        assert f"layer {index}, head 0, Neg Rat: {100 * ratio:.0f}%" in shown
    means = shown["mean over all heads and 2 rows of jsonl\n(the maps above: of the first row)"]
    expected = [100 * one["map_negative_ratio"] for one in ratios_by_layer(run, 2)["layers"]]
    assert list(means.lines[0].get_ydata()) == pytest.approx(expected)


def test_a_signed_map_is_centred_at_0(drawn, tmp_path):
    values = [[0.5, -0.3, 0.0], [-0.001, 2.0, 0.1], [0.2, -1.9, 0.0]]
    plots.attention_maps(
        ["a", "b", "c"], {"one": (values, 2 / 9), "none": ([[0.0]], 0.0)}, tmp_path
    )
    one, none = (axis.images[0] for axis in drawn[0].axes if axis.images)
    assert (one.get_clim(), none.get_clim()) == ((-2.0, 2.0), (-1.0, 1.0))
    assert min(one.cmap(0.5)[:3]) > 0.95  # what is 0 is white, wherever the values lie


def test_without_matplotlib_the_extra_is_named_when_something_is_drawn(tmp_path, monkeypatch):
    for module in ("lorada.paper.figures", "lorada.compare.report.expected_loss_plot"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="install the extra `plots`"):
        importlib.import_module("lorada.paper.figures").attention_maps(["a"], {}, tmp_path)


def test_dollars_in_names_and_tokens_are_no_formulas(drawn, tmp_path):
    plots.attention_maps(["$$", "$a^$"], {"a": ([[0.5, -1], [1, 0]], 0.1)}, tmp_path, title="$_$")
    named = (figure.findobj(lambda one: hasattr(one, "get_text")) for figure in drawn)
    shown = {text.get_text() for texts in named for text in texts}
    assert {r"\$\$", r"\$a^\$", r"\$_\$"} <= shown


def test_the_sweep_has_a_cell_for_every_heads_and_rank(drawn, tmp_path):
    scores = {(1, 1): [80.0, 82.0], (1, 2): [84.0], (3, 1): [85.0]}
    sweep_figure(scores, tmp_path / "sweep.svg", title="t", metric="accuracy (%)")
    axis = drawn[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in axis.texts}
    assert cells == {(0, 0): "81.0\n±1.4", (1, 0): "84.0", (0, 1): "85.0", (1, 1): "nan"}
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "2"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["1", "3"]


BAD = {
    "plot 1": "lorada plot 1 takes a run",
    "plot 4 bert": "lorada plot 4 takes no run",
    "plot 1 plain --text a": "this model has no active map",
    "explore pairs --text a --text b --text-pair c": "--text is given 2 times and --text-pair 1",
}


@pytest.mark.parametrize("command", BAD)
def test_a_mistake_is_one_line(command, runs, mistake, monkeypatch):
    monkeypatch.chdir(runs)
    assert BAD[command] in mistake(*command.split())


def test_a_sweep_of_which_a_run_failed_is_drawn_without_it(drawn, call, tmp_path, monkeypatch):
    def some(found, **options):
        results = [
            RunResult(
                labels=[], form="label", history=[], model="bert",
                recipe=StoredRecipe(**job.recipe.model_dump()),
                metrics={job.tasks[0]: RowsMetrics(n=1, accuracy=80.0)},
            )
            for job in found
        ]  # fmt: skip
        results[0] = None
        return results, {"a": Outcome("failed", "too large"), "b": Outcome("held")}

    monkeypatch.setattr(table_runs, "run_all", some)
    words = ("plot", "4", "--scale", "local", "--output", str(tmp_path))
    code, _, err = call(*words)
    assert code == 2
    assert "a failed: too large" in err
    assert "1 of 2 jobs are held" in err
    assert drawn[0].axes[0].get_title().endswith("(bert, local scale, 2 to 3 seeds)")
