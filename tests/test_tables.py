"""The paper's tables: recipes of rows, runs that go on where they were, pages beside the paper."""

import gzip
import json
import subprocess
import sys

import pytest
import yaml
from folders import bert_folder

from lorada import cli
from lorada.report import paper_page as pages
from lorada.report import tables as report
from lorada.report.paper_page import Row, paper_page
from lorada.report.tables import Page, published_line
from lorada.run import tables
from lorada.run.lock import LOCK_FILE
from lorada.run.params import parameters_of
from lorada.run.result import read_result
from lorada.run.table_runs import jobs
from lorada.run.tables import PaperTable, load_table, row_recipe

TASKS = ("rte", "sst2")
PUBLISHED = {
    "columns": ["rte", "sst2", "avg"],
    "rows": [
        {"key": "lora", "label": "LoRA (0.5%)", "params": "0.5", "scores": [75.4, 94.2, 84.8],
         "std": [0.2, 0.2, None]},
        {"key": "full", "label": "Full", "params": "100%", "scores": [78.7, 94.6, 86.3]},
    ],
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A table 5 on a tiny BERT, with rows of two tasks in a local folder."""
    model = bert_folder(tmp_path / "bert")
    for task in TASKS:
        texts = {"rte": ("sentence1", "sentence2"), "sst2": ("sentence",)}[task]
        for split in ("train", "validation"):
            rows = [{**dict.fromkeys(texts, "ab" * (i % 4 + 1)), "label": i % 2} for i in range(12)]
            path = tmp_path / "data" / "glue" / task / f"{split}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            with gzip.open(path, "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    recipe = {
        "table": 5, "title": "GLUE", "tasks": list(TASKS), "train": "each", "seeds": [1, 2],
        "differs": ["A tiny model, rows that mean nothing."],
        "paper": {"model": "roberta-base", "settings": {"max_length": 512}},
        "local": {
            "model": str(model),
            "settings": {
                "max_length": 32,
                "training": {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": []},
            },
            "by_task": {"rte": {"training": {"learning_rate": 3.0e-4}}},
        },
        "rows": [
            {"key": "lora", "label": "LoRA (0.5%)", "method": "lora", "share": 2.0,
             "match": "lora.r"},
            {"key": "full", "label": "Full", "method": "full"},
        ],
    }  # fmt: skip
    path = tmp_path / "table5.yaml"
    path.write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(tables, "tables", lambda: {"table5": path})
    monkeypatch.setattr(report, "published", lambda number: PUBLISHED)
    monkeypatch.setattr(pages, "published", lambda number: PUBLISHED)
    load_table.cache_clear()
    monkeypatch.setenv("LORADA_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    load_table.cache_clear()


def lorada(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["lorada", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_table_runs_its_rows_and_prints_them_beside_the_paper(place, monkeypatch, capsys):
    code, out, err = lorada(
        monkeypatch, capsys, "table", "5", "--scale", "local", "--rows", "lora", "--seeds", "1,2"
    )
    assert code == 0, err
    assert "75.4 ± 0.2" in out
    folder = place / "docs/results/table5/local"
    stored = sorted(str(path.relative_to(folder)) for path in folder.rglob("seed*.json"))
    assert stored == [f"lora/{task}/seed{seed}.json" for task in TASKS for seed in (1, 2)]
    page = (folder / "table.md").read_text()
    assert "A tiny model, rows that mean nothing." in page
    assert "| LoRA (0.5%) | paper | 0.5% | 75.4 ± 0.2 | 94.2 ± 0.2 | 84.8 | – |" in page
    assert page.count("| ours |") == 1
    assert "seeds 1, 2" in page
    assert (folder / "table.tex").read_text().count(r"\\") == 3
    recipe = json.loads((folder / "lora/rte/seed1.json").read_text())["recipe"]
    assert recipe["data_dir"] is None
    assert recipe["training"]["learning_rate"] == 3.0e-4


def test_a_table_that_was_cut_off_runs_only_what_is_missing(place, monkeypatch, capsys):
    words = ("table", "5", "--scale", "local", "--tasks", "rte", "--seeds", "1")
    assert lorada(monkeypatch, capsys, *words, "--rows", "lora")[0] == 0
    first = place / "docs/results/table5/local/lora/rte/seed1.json"
    before = first.stat().st_mtime_ns
    code, _, err = lorada(monkeypatch, capsys, *words)
    assert code == 2
    assert "is there already: use --resume" in err
    code, _, err = lorada(monkeypatch, capsys, *words, "--resume")
    assert code == 0, err
    assert "full, rte, seed 1: training" in err
    assert "lora, rte, seed 1: training" not in err
    assert first.stat().st_mtime_ns == before


def test_a_run_that_trained_but_was_not_scored_is_only_scored(place, monkeypatch, capsys):
    words = ("table", "5", "--scale", "local", "--tasks", "rte", "--seeds", "1", "--rows", "lora")
    assert lorada(monkeypatch, capsys, *words)[0] == 0
    stored = place / "docs/results/table5/local/lora/rte/seed1.json"
    kept = json.loads(stored.read_text())
    stored.unlink()
    run = place / "runs/table5-local/lora/rte/seed1"
    result = read_result(run)
    (run / "result.json").write_text(json.dumps({**result, "metrics": {}}))
    code, _, err = lorada(monkeypatch, capsys, *words, "--resume")
    assert code == 0, err
    assert "training" not in err
    assert json.loads(stored.read_text())["metrics"] == kept["metrics"]


def test_a_run_that_was_not_scored_on_all_its_tasks_is_scored_again(place, monkeypatch, capsys):
    words = ("table", "5", "--scale", "local", "--tasks", "rte", "--seeds", "1", "--rows", "lora")
    assert lorada(monkeypatch, capsys, *words)[0] == 0
    stored = place / "docs/results/table5/local/lora/rte/seed1.json"
    kept = json.loads(stored.read_text())
    run = place / "runs/table5-local/lora/rte/seed1/result.json"
    for path in (stored, run):
        path.write_text(json.dumps({**kept, "metrics": {"other (base)": {"n": 1}}}))
    code, _, err = lorada(monkeypatch, capsys, *words, "--resume")
    assert code == 0, err
    assert "scoring" in err
    assert json.loads(stored.read_text())["metrics"]["rte"] == kept["metrics"]["rte"]


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(place, monkeypatch, capsys):
    words = ("table", "5", "--scale", "local", "--tasks", "rte", "--seeds", "1", "--rows", "lora")
    assert lorada(monkeypatch, capsys, *words)[0] == 0
    run = place / "runs/table5-local/lora/rte/seed1/result.json"
    before = json.loads(run.read_text())
    before["recipe"]["max_length"] = 48
    run.write_text(json.dumps(before))
    code, _, err = lorada(monkeypatch, capsys, *words, "--results", "elsewhere")
    assert code == 2
    assert "seed1/result.json was made with max_length=48, not 32" in err
    assert not (place / "elsewhere").exists()


def test_an_overwritten_table_that_is_cut_off_has_no_old_numbers(place, monkeypatch, capsys):
    words = ("table", "5", "--scale", "local", "--tasks", "rte", "--seeds", "1")
    assert lorada(monkeypatch, capsys, *words)[0] == 0

    def cut_off(*args, **kwargs):
        raise ValueError("cut off")

    monkeypatch.setattr("lorada.run.table_runs.train", cut_off)
    assert lorada(monkeypatch, capsys, *words, "--overwrite")[0] == 2
    assert not list((place / "docs/results").rglob("seed*.json"))
    assert not list((place / "runs").rglob("result.json"))


def test_a_page_keeps_the_rows_and_seeds_of_earlier_calls(place, monkeypatch, capsys):
    words = ("table", "5", "--scale", "local", "--tasks", "rte")
    assert lorada(monkeypatch, capsys, *words, "--rows", "lora", "--seeds", "1,1")[0] == 0
    code, out, _ = lorada(monkeypatch, capsys, *words, "--rows", "full", "--seeds", "2", "--resume")
    assert code == 0
    assert "LoRA" not in out
    page = (place / "docs/results/table5/local/table.md").read_text()
    assert page.count("| ours |") == 2
    assert "seeds 1, 2" in page


def test_a_result_that_cannot_be_used_for_the_page_is_named_and_left_out(
    place, monkeypatch, capsys
):
    words = ("table", "5", "--scale", "local", "--tasks", "rte", "--seeds", "1")
    assert lorada(monkeypatch, capsys, *words, "--rows", "lora")[0] == 0
    stored = place / "docs/results/table5/local/lora/rte/seed1.json"
    result = json.loads(stored.read_text())
    result["recipe"]["max_length"] = 48
    stored.write_text(json.dumps(result))
    stored.with_name("seed1-old.json").write_text("{}")
    code, out, err = lorada(monkeypatch, capsys, *words, "--rows", "full")
    assert code == 0, err
    assert "Full" in out
    assert "left out: " in err
    assert "was made with max_length=48, not 32" in err
    assert "LoRA" not in (place / "docs/results/table5/local/table.md").read_text()


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"recipe": {"nothing": 1}}'])
def test_a_file_that_is_no_result_is_one_line(content, place, monkeypatch, capsys):
    stored = place / "docs/results/table5/local/lora/rte/seed1.json"
    stored.parent.mkdir(parents=True)
    stored.write_text(content)
    words = ("table", "5", "--scale", "local", "--tasks", "rte", "--seeds", "1", "--rows", "lora")
    code, _, err = lorada(monkeypatch, capsys, *words, "--resume")
    assert code == 2
    assert "seed1.json is not the result of a run: delete it" in err
    assert "Traceback" not in err


def test_overwriting_leaves_alone_what_another_process_trains(place, monkeypatch, capsys):
    words = ("table", "5", "--scale", "local", "--tasks", "rte", "--seeds", "1", "--rows", "lora")
    assert lorada(monkeypatch, capsys, *words)[0] == 0
    run = place / "runs/table5-local/lora/rte/seed1"
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
    code += "print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(run / LOCK_FILE)],
                              stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert holder.stdout.readline() == b"held\n"
        code, _, err = lorada(monkeypatch, capsys, *words, "--overwrite")
    finally:
        holder.kill()
    assert code == 2
    assert "is being trained by" in err
    assert (run / "result.json").is_file()
    assert (place / "docs/results/table5/local/lora/rte/seed1.json").is_file()


def test_a_part_of_tasks_learned_together_has_a_page_of_its_own(place, monkeypatch, capsys):
    path = place / "table5.yaml"
    table = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**table, "tasks": ["rte", "qnli"], "train": "together"}))
    for split in ("train", "validation"):
        rows = gzip.decompress((place / f"data/glue/rte/{split}.jsonl.gz").read_bytes()).decode()
        renamed = rows.replace("sentence1", "question").replace("sentence2", "sentence")
        other = place / f"data/glue/qnli/{split}.jsonl.gz"
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(gzip.compress(renamed.encode()))
    words = ("table", "5", "--scale", "local", "--seeds", "1", "--rows", "lora")
    for tasks in ((), ("--tasks", "rte")):
        code, _, err = lorada(monkeypatch, capsys, *words, *tasks)
        assert code == 0, err
    folder = place / "docs/results/table5/local"
    assert "| rte | qnli |" in (folder / "table.md").read_text()
    assert "qnli" not in (folder / "table-rte.md").read_text()


def test_tasks_have_one_order(place):
    table = load_table("table5").model_copy(update={"train": "together"})
    (job,) = jobs(table, "local", rows=["lora"], tasks=["sst2", "rte", "rte"], seeds=[1],
                  results=place, output=place)  # fmt: skip
    assert job.tasks == ["rte", "sst2"]


def test_a_result_of_another_recipe_is_not_taken_for_this_one(place, monkeypatch, capsys):
    words = ("table", "5", "--scale", "local", "--tasks", "rte", "--seeds", "1", "--rows", "full")
    assert lorada(monkeypatch, capsys, *words)[0] == 0
    stored = place / "docs/results/table5/local/full/rte/seed1.json"
    result = json.loads(stored.read_text())
    result["recipe"]["max_length"] = 48
    stored.write_text(json.dumps(result))
    code, _, err = lorada(monkeypatch, capsys, *words, "--resume")
    assert code == 2
    assert "was made with max_length=48, not 32" in err
    assert lorada(monkeypatch, capsys, *words, "--overwrite")[0] == 0
    assert json.loads(stored.read_text())["recipe"]["max_length"] == 32


def test_a_dry_run_counts_and_estimates_and_writes_nothing(place, monkeypatch, capsys):
    code, out, err = lorada(
        monkeypatch, capsys, "table", "5", "--scale", "local", "--dry-run", "--json"
    )
    assert code == 0, err
    plan = json.loads(out)
    assert len(plan) == 2 * 2 * 2
    assert {entry["steps"] for entry in plan} == {2}
    assert all(entry["tokens"] == 2 * 4 * 32 for entry in plan)
    assert not any(entry["done"] for entry in plan)
    assert not (place / "docs").exists()
    assert not (place / "runs").exists()


def test_the_matched_setting_is_the_integer_nearest_to_the_share(place):
    table = load_table("table5")
    row = table.rows[0]
    recipe = row_recipe(table, row, "local", ["rte"], 1, place / "run")
    rank = recipe.parts["lora"]["r"]
    shares = {}
    for near in (rank - 1, rank, rank + 1):
        parts = {"lora": {"r": near}}
        shares[near] = parameters_of(recipe.model_copy(update={"parts": parts}))["percent"]
    assert min(shares, key=lambda r: abs(shares[r] - row.share)) == rank
    assert recipe.parts["lora"]["lora_alpha"] == 2 * rank  # METHODS has r=16, α=32


BAD = {
    "no such table": (["1"], "no table1 of results in the paper: there are tables 2, 3, 5"),
    "no such row": (["5", "--rows", "lroa"], "unknown row of table5 'lroa'; did you mean lora?"),
    "a task of another table": (["5", "--tasks", "piqa"], "unknown task of table5 'piqa'"),
    "seeds that are no numbers": (["5", "--seeds", "a"], "--seeds a must be whole numbers"),
    "no such scale": (["5", "--scale", "huge"], "--scale huge is not one of paper, local"),
    "both": (["5", "--resume", "--overwrite"], "exclude each other"),
    "no data": (["5", "--data-dir", "nowhere"], "no data folder at nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line(case, place, monkeypatch, capsys):
    words, message = BAD[case]
    code, _, err = lorada(monkeypatch, capsys, "table", *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_row_of_a_method_finds_all_rows_of_it(place):
    table = load_table("table5")
    assert [row.key for row in table.rows_named(["full", "lora"])] == ["full", "lora"]
    twice = table.model_copy(
        update={"rows": [*table.rows, table.rows[0].model_copy(update={"key": "lora_0.1"})]}
    )
    assert isinstance(twice, PaperTable)
    assert [row.key for row in twice.rows_named(["lora_0.1"])] == ["lora_0.1"]


def result(seed: int, *, task: str = "rte", recipe: dict | None = None, **metrics) -> dict:
    """As much of a ``result.json`` as a page reads."""
    return {
        "seed": seed, "model": "tiny", "metrics": {task: {"n": 9, **metrics, "sha256": "a"}},
        "parameters": {"percent": 0.5}, "wall_time_s": 60.0, "recipe": recipe or {},
        "hardware": {"accelerator": None, "cpu": "C", "threads": 2},
        "versions": {"torch": "2", "transformers": "5", "peft": "0"},
    }  # fmt: skip


def page_of(*rows: Row, columns=("rte",), **options) -> Page:
    where = {name: (name.partition("_")[0], None) for name in columns}
    settings = {"mean": None, "digits": 1, **options}
    return paper_page(5, "T", rows, where, **settings)


def said(*rows: Row, **options) -> str:
    return " ".join(page_of(*rows, **options).notes)


def test_a_page_has_means_spreads_and_every_seed(monkeypatch):
    monkeypatch.setattr(report, "published", lambda number: {"columns": [], "rows": []})
    monkeypatch.setattr(pages, "published", lambda number: {"columns": [], "rows": []})
    both = [
        result(seed, task=task, accuracy=value)
        for task, values in {"rte": (70.0, 80.0), "sst2": (60.0, 90.0)}.items()
        for seed, value in enumerate(values)
    ]
    page = page_of(Row("lora", "LoRA_1", both), columns=("rte", "sst2"))
    text = report.markdown(page)
    # The spread of the mean is that of the seeds' means, 65 and 85.
    assert "| LoRA_1 | ours | 0.500% | 75.0 ± 7.1 | 75.0 ± 21.2 | 75.0 ± 14.1 | 4.0 |" in text
    assert "seeds 0, 1; ± is the standard deviation over seeds" in text
    assert "rte,75.0,7.07106781" in report.comma_separated(page)
    assert "mean,75.0,14.1421356" in report.comma_separated(page)
    assert "70.0000 80.0000" in report.comma_separated(page)
    assert r"LoRA\_1 & ours & 0.500\% & 75.0 $\pm$ 7.1" in report.latex(page)


@pytest.fixture
def printed(monkeypatch):
    """The published rows of these tests."""
    monkeypatch.setattr(report, "published", lambda number: PUBLISHED)
    monkeypatch.setattr(pages, "published", lambda number: PUBLISHED)


def test_a_mean_is_left_out_where_a_column_is_missing(printed):
    page = page_of(Row("lora", "LoRA (0.5%)", [result(1, accuracy=1.0)]), columns=("rte", "sst2"))
    assert "| LoRA (0.5%) | ours | 0.500% | 1.0 | – | – | 1.0 |" in report.markdown(page)


def test_a_page_says_what_its_mean_is_of(printed):
    row = Row("lora", "LoRA (0.5%)", [result(1, accuracy=1.0)])
    assert "mean: of rte, of seeds that have them all; of a row for which" in said(row)
    assert "mean: of sst2, of" in said(row, columns=("rte", "sst2"), mean=["sst2", "mrpc"])
    assert "mean" not in said(row, mean=[])
    assert "±" not in said(row)
    assert page_of(row, mean=[]).columns == ["rte"]


def test_a_page_names_rows_with_fewer_seeds(printed):
    rows = [Row("lora", "LoRA (0.5%)", [result(1, accuracy=1.0), result(2, accuracy=1.0)]),
            Row("full", "Full", [result(1, accuracy=1.0)])]  # fmt: skip
    assert "fewer seeds than 2 so far, at least in one column: Full." in said(*rows)
    assert "fewer seeds" not in said(rows[0])


def test_protocols_have_columns_of_their_own(printed):
    rows = [
        Row("lora", "LoRA (0.5%)", [result(1, accuracy=1.0, recipe={"protocol": "generate"})]),
        Row("full", "Full", [result(1, accuracy=2.0, recipe={"protocol": "likelihood"})]),
    ]
    page = page_of(*rows)
    assert page.columns == [
        "rte (generate)", "mean (generate)", "rte (likelihood)", "mean (likelihood)"
    ]  # fmt: skip
    text = report.markdown(page)
    assert "| LoRA (0.5%) | paper | 0.5% | 75.4 ± 0.2 | 75.4 | – | – | – |" in text
    assert "| Full | ours | 0.500% | – | – | 2.0 | 2.0 |" in text
    assert "protocol: generate, likelihood" in text


def test_rows_scored_on_different_data_do_not_share_a_page(printed):
    other = result(2, accuracy=1.0)
    other["metrics"]["rte"]["sha256"] = "b"
    with pytest.raises(ValueError, match="rte was scored on other rows in lora, seed 2 than in"):
        page_of(Row("lora", "LoRA (0.5%)", [result(1, accuracy=1.0), other]))


def test_a_page_names_every_machine_and_what_could_not_be_read(printed):
    first, second = result(1, accuracy=1.0), result(2, accuracy=1.0)
    second["hardware"] = {"accelerator": "H100"}
    second["unparsable"] = {"rte": 12.5}
    notes = " ".join(page_of(Row("lora", "LoRA (0.5%)", [first, second])).notes)
    assert "C, threads: 2; torch 2" in notes
    assert "H100; torch 2" in notes
    assert "lora 12.5 %" in notes


def test_only_rows_of_several_models_are_named_by_them():
    assert published_line(9, "lorada_la").label == "LoRaDA-LA"
    assert published_line(4, "llama-7b/lorada_la").label == "LLaMA-7B, LoRaDA-LA"
    assert published_line(4, "chatgpt").label == "ChatGPT"
    row = Row("llama-7b/lorada_la", "LoRaDA-LA", [result(1, task="boolq", accuracy=1.0)])
    page = paper_page(4, "T", [row], {"boolq": ("boolq", None)}, mean=[], digits=1)
    assert [line.label for line in page.lines] == ["LLaMA-7B, LoRaDA-LA", "llama-7b/lorada_la"]


def test_rows_that_only_the_paper_has_come_first(printed):
    page = page_of(Row("lora", "LoRA (0.5%)", [result(1, accuracy=1.0)]), unrun=["full"])
    assert [(line.label, line.source) for line in page.lines] == [
        ("Full", "paper"), ("LoRA (0.5%)", "paper"), ("LoRA (0.5%)", "ours")
    ]  # fmt: skip
    assert "| Full | paper | 100% | 78.7 | 78.7 | – |" in report.markdown(page)
