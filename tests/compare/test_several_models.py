"""``lorada compare --model a,b``: one queue, one report over all, and going on after a kill."""

import json
import re
import shutil

import pytest
from comparisons import comparison, model_and_rows
from folders import bert_folder, byte_tokenizer, llama_folder, refused

from lorada.cli.several_models import models_of
from lorada.compare.report.joined_report import read_joined
from lorada.compare.several_models import refuse_incomparable

SETTINGS = ["max_steps=2", "max_length=32", "max_new_tokens=2", "training.report_to=[]"]
FOLDERS = {"llama": "llama", "larger": "larger"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = model_and_rows(tmp_path_factory.mktemp("models"))
    llama_folder(place / "larger", num_hidden_layers=3)
    bert_folder(place / "bert")
    llama_folder(place / "other")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(place / "other")
    return place


def words(place, output, *more, models=("llama", "larger"), methods="lora,ia3"):
    return list(map(str, [
        "compare", "--model", ",".join(str(place / model) for model in models),
        "--data", place / "train.jsonl", "--held-out", place / "test.jsonl",
        "--methods", methods, "--seeds", "1,2", "--rates", "1e-3", "--output", output,
        *SETTINGS, *more,
    ]))  # fmt: skip


def read(path):
    return json.loads(path.read_text())


def of_scores(report):
    """What does not hang on the clock."""
    kept = ("name", "model", "score", "low", "high", "letter", "trainable", "seeds")
    lines = [{key: line[key] for key in kept} for line in report["lines"]]
    return sorted(lines, key=lambda line: line["name"])


@pytest.fixture(scope="module")
def whole(lab, place):
    folder = place / "whole"
    reply = lab.command(words(place, folder), folder)
    assert reply["code"] == 0, reply["said"]
    return folder, reply


@pytest.mark.more
def test_all_jobs_are_in_one_queue_and_one_report_is_over_all(place, whole):
    folder, reply = whole
    said = " ".join(reply["said"].split())
    begun = re.findall(r"\[(\d+)/(\d+)\] \S*/(llama|larger): (\S+)", said)
    models = list(dict.fromkeys(model for _, _, model, _ in begun))
    assert models == ["llama", "larger"]
    assert {total for _, total, _, _ in begun} == {begun[0][1]}
    report = read(folder / "report.json")
    assert [line["model"] for line in report["lines"]] == [
        *[str(place / "llama")] * 2, *[str(place / "larger")] * 2,
    ]  # fmt: skip
    assert {model["folder"] for model in report["models"]} == set(FOLDERS)
    for model in report["models"]:
        own = read(folder / model["folder"] / "report.json")
        assert (model["verdict"], model["gain"]) == (own["verdict"], own["gain"])
        scores = {line["label"]: line["score"] for line in own["lines"]}
        joined = [line for line in report["lines"] if line["model"] == model["name"]]
        assert {line["label"]: line["score"] for line in joined} == scores
    assert len(report["sentences"]) == 1  # the best of either model
    # Two steps teach nothing, which is said if the model's own report has the gain of the same.
    (pick,) = [line for line in report["lines"] if line["name"] == report["best"]]
    (gain,) = [model["gain"] for model in report["models"] if model["name"] == pick["model"]]
    is_known = gain["method"] == pick["label"] and not gain["is_shown"]
    assert report["verdict"].startswith("Do not tune yet: ") == is_known


@pytest.mark.more
def test_the_page_links_to_the_report_of_each_model(whole):
    folder, _ = whole
    page = (folder / "report.html").read_text()
    links = re.findall(r'href="([^"]*report\.html)"', page)
    assert links == ["llama/report.html", "larger/report.html"]
    assert all((folder / link).is_file() for link in links)
    assert page.count("<svg") == 2  # of the scores, for wide and narrow screens


@pytest.mark.more
def test_a_report_is_written_again_and_printed_as_json(lab, whole):
    folder, _ = whole
    before = read(folder / "report.json")
    written = (folder / "report.json").stat().st_mtime_ns
    reply = lab.command(["report", str(folder), "--json"], folder)
    assert (reply["code"], reply["steps"]) == (0, 0), reply["said"]
    assert read(folder / "report.json") == before
    assert (folder / "report.json").stat().st_mtime_ns > written
    assert json.dumps(before["verdict"]) in reply["said"]
    wrong = lab.command(["report", str(folder), "--metric", "loss"], folder)
    assert wrong["code"] == 2
    assert "--metric, --unit and --with-text are for the folder of one" in " ".join(
        wrong["said"].split()
    )


@pytest.mark.more
@pytest.mark.parametrize("hours", ["null", "1.0"], ids=["without a time", "the time has ended"])
def test_candidates_without_a_run_are_listed_with_their_reason(place, whole, tmp_path, hours):
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    settings = folder / "llama" / "comparison.yaml"
    settings.write_text(settings.read_text().replace("hours: null", f"hours: {hours}"))
    assert f"hours: {hours}" in settings.read_text()
    shutil.rmtree(folder / "llama" / "runs" / "ia3")
    joined = read_joined(folder, {str(place / name): name for name in FOLDERS})
    (missing,) = joined.unscored
    assert missing.name == "llama with ia3"
    assert missing.line.result.reason
    listed = [line for line in joined.plain()["lines"] if line["name"] == missing.name]
    assert [line["reason"] for line in listed] == [missing.line.result.reason]


@pytest.mark.more
@pytest.mark.parametrize(
    ("moment", "has_begun"),
    [
        (r"os.rename larger/runs/lora/.*seed1/.*predictions.jsonl", True),
        (r"os.rename larger/.*comparison.yaml", True),
        (r"os.rename llama/.*comparison.yaml", False),
    ],
    ids=["in a run of the second model", "before the second begins", "before either begins"],
)
def test_what_was_killed_goes_on_to_the_same_report(lab, place, whole, tmp_path, moment, has_begun):
    folder = tmp_path / "comparison"
    asked = words(place, folder)
    killed = lab.command(asked, folder, at=moment)
    assert killed["code"] == -9
    again = lab.command(["compare", str(folder), "--resume"], folder)
    if not has_begun:
        assert again["code"] == 2
        assert "give the whole command with --overwrite" in " ".join(again["said"].split())
        again = lab.command([*asked, "--resume"], folder)
    assert again["code"] == 0, again["said"]
    assert of_scores(read(folder / "report.json")) == of_scores(read(whole[0] / "report.json"))


def test_models_that_cannot_be_compared_are_refused_and_nothing_is_written(place, tmp_path):
    def check(*models, **changes):
        settings = {"methods": ["lora"], "seeds": [1, 2], **changes.pop("settings", {})}
        asked = {}
        for model in models:
            recipe = {"model": str(place / model), "max_length": 32, **changes}
            asked[model] = comparison(place, recipe=recipe, **settings)
        folders = {model: model for model in models}
        refuse_incomparable(asked, tmp_path / "out", folders, overwrite=False)

    check("llama", "larger")
    refused("^bert: ", lambda: check("llama", "bert"))
    refused("have different vocabularies", lambda: check("llama", "other", metric="loss"))
    check("llama", "other")  # written answers are compared by their text
    assert not (tmp_path / "out").exists()


def test_another_list_of_models_is_refused_in_a_folder_that_has_one(tmp_path):
    assert models_of("a/x,b/y", tmp_path, resume=True) == {"a/x": "x", "b/y": "y"}
    (tmp_path / "models.yaml").write_text("models:\n  a/x: x\n  b/y: y\n")
    assert models_of(None, tmp_path, resume=True) == {"a/x": "x", "b/y": "y"}
    for model, resume in (("a/x,c/z", True), ("a/x", False), ("a/x", True)):
        refused(
            "holds a comparison of a/x, b/y, not of",
            lambda model=model, resume=resume: models_of(model, tmp_path, resume=resume),
        )
    (tmp_path / "models.yaml").unlink()
    (tmp_path / "comparison.yaml").touch()
    refused("of one model", lambda: models_of("a/x,b/y", tmp_path, resume=True))
