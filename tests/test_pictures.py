"""The paper's figures from a real run, and what the commands that draw them refuse."""

import json
import sys

import pytest
from folders import bert_folder, llama_folder, rows_file

from lorada import cli
from lorada.report import plots
from lorada.report.plots import scatter_figure, sweep_figure
from lorada.report.tables import stored_points
from lorada.run.loaded import load_run
from lorada.run.pictures import ratios_by_layer, sentence_maps
from lorada.run.recipe import load_recipe
from lorada.run.tables import load_table
from lorada.run.train import train

TEXT = "the cat sat"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with maps on a tiny encoder, one on a tiny decoder, and one without a map."""
    root = tmp_path_factory.mktemp("runs")
    labels = [{"text": "ab" * (i % 4 + 1), "label": "yn"[i % 2]} for i in range(12)]
    models = {"bert": bert_folder(root / "bert"), "llama": llama_folder(root / "llama")}
    rows = {
        "bert": rows_file(root / "labels.jsonl", labels),
        "llama": rows_file(root / "rows.jsonl"),
    }
    for name, method in (("bert", "lmam"), ("llama", "lmam"), ("plain", "lora")):
        kind = "llama" if name == "plain" else name
        options = {"method": method, "model": str(models[kind]), "data": str(rows[kind]),
                   "eval_data": str(rows[kind]), "output": str(root / name)}  # fmt: skip
        train(load_recipe(None, ["max_steps=3", "report_to=[]"], options), quiet=True)
    return root


def lorada(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["lorada", *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_maps_of_a_sentence_add_up_and_have_one_row_a_token(runs, name):
    found = sentence_maps(load_run(runs / name), TEXT, layer=0, head=1)
    softmax, map_, fused = (found["maps"][k][0] for k in found["maps"])
    count = len(found["tokens"])
    assert len(fused) == count == len(fused[0])
    for i in range(count):
        for j in range(count):
            assert fused[i][j] == pytest.approx(softmax[i][j] + map_[i][j], abs=1e-6)
    below = sum(value < 0 for row in map_ for value in row)
    pairs = count * count if name == "bert" else count * (count + 1) // 2
    assert found["maps"]["LMAM (Attn_s)"][1] == pytest.approx(below / pairs)
    assert len(found["layers"]) == 2
    assert all(one["effect_size"] > 0 for one in found["layers"])


def test_ratios_by_layer_are_means_over_rows(runs):
    run = load_run(runs / "bert")
    one, two = (ratios_by_layer(run, count)["layers"] for count in (1, 2))
    texts = [json.loads(line)["text"] for line in (runs / "labels.jsonl").open()]
    each = [sentence_maps(run, text)["layers"] for text in texts[:2]]
    for index in range(2):
        assert one[index]["negative_ratio"] == pytest.approx(each[0][index]["negative_ratio"])
        mean = sum(e[index]["map_negative_ratio"] for e in each) / 2
        assert two[index]["map_negative_ratio"] == pytest.approx(mean)


def test_explain_draws_figure_1_and_prints_every_layers_effect_size(runs, monkeypatch, capsys):
    code, out, err = lorada(monkeypatch, capsys, "explain", runs / "bert", "--text", TEXT)
    assert code == 0, err
    assert "effect size" in out
    for suffix in (".png", ".svg"):
        assert (runs / "bert" / f"explain{suffix}").stat().st_size > 5000
    code, out, _ = lorada(
        monkeypatch, capsys, "explain", runs / "llama", "--text", TEXT, "--layer", 0, "--json"
    )
    found = json.loads(out)
    assert len(found["layers"]) == 2
    assert found["layer"].endswith("layers.0.self_attn")


@pytest.mark.parametrize(("what", "name"), [("1", "figure1"), ("3", "figure3"), ("loss", "loss")])
def test_a_figure_of_a_run_is_drawn(what, name, runs, tmp_path, monkeypatch, capsys):
    words = ("plot", what, runs / "bert", "--output", tmp_path, "--rows", 2)
    code, out, err = lorada(monkeypatch, capsys, *words)
    assert code == 0, err
    assert "next: lorada" in out
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"{name}{suffix}").stat().st_size > 5000


def test_the_scatter_has_a_point_for_every_row_that_has_all_tasks(tmp_path, monkeypatch, capsys):
    for row, tasks in (("lora", ("rte", "sst2")), ("full", ("rte", "sst2")), ("half", ("rte",))):
        for task in tasks:
            for seed in (1, 2):
                path = tmp_path / "table5/local" / row / task / f"seed{seed}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                metrics = {task: {"n": 4, "accuracy": 70.0 + seed, "loss": 1.0}}
                path.write_text(json.dumps({"parameters": {"percent": 0.5}, "metrics": metrics}))
    points = {point["label"]: point for point in stored_points(tmp_path / "table5/local")}
    assert points.keys() == {"lora", "full"}
    assert points["lora"]["scores"] == [71.0, 72.0]
    words = ("plot", "scatter", "--results", tmp_path, "--scale", "local", "--output", tmp_path)
    code, _, err = lorada(monkeypatch, capsys, *words)
    assert code == 0, err
    assert (tmp_path / "scatter-table5.png").stat().st_size > 5000


def test_the_sweep_has_a_cell_for_every_heads_and_rank(tmp_path):
    scores = {(1, 1): [80.0, 82.0], (1, 2): [84.0], (3, 1): [85.0]}
    sweep_figure(scores, tmp_path / "sweep.svg", "t", "accuracy (%)")
    text = (tmp_path / "sweep.svg").read_text()
    assert text.startswith("<?xml")
    scatter_figure([{"label": "a", "percent": 1.0, "scores": [1.0]}], tmp_path / "s.png", "t")


def test_figure_4_sweeps_sixteen_maps():
    figure = load_table("figure4")
    assert figure.name == "figure4"
    assert len({(r.local["lmam"]["heads"], r.local["lmam"]["rank"]) for r in figure.rows}) == 16


BAD = {
    "no such picture": (["plot", "2"], "no picture '2': there are 1, 3, 4, loss, scatter"),
    "no run": (["plot", "1"], "lorada plot 1 needs a run"),
    "not a run": (["plot", "loss", "nowhere"], "nowhere has no result.json"),
    "no results": (["plot", "scatter", "--results", "x", "--scale", "local"], "has no results"),
    "empty text": (["explain", "bert", "--text", " "], "the text is empty"),
    "no such layer": (["explain", "bert", "--text", "a", "--layer", "7"], "7 is not in 0–1"),
    "no such head": (["explain", "bert", "--text", "a", "--head", "9"], "--head 9 is not in 0–3"),
    "no map": (["explain", "plain", "--text", "a"], "this model has no active map"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line(case, runs, monkeypatch, capsys):
    words, message = BAD[case]
    monkeypatch.chdir(runs)
    code, _, err = lorada(monkeypatch, capsys, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_every_run_has_a_curve_and_names_without_what_all_share(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    history = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    names = [f"runs/table9/{row}/seed1" for row in "abcdefghij"]
    plots.loss_png(dict.fromkeys(names, history), tmp_path / "loss.png")
    (figure,) = drawn
    assert len(figure.axes[0].lines) == len(names)
    assert [text.get_text() for text in figure.legends[0].texts] == list("abcdefghij")
    plt.close(figure)
