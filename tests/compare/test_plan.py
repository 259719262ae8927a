"""The plan of a comparison: methods with settings, sizes, steps, rows; the commonest answer."""

import re

import fake_devices
import pytest
import torch
from comparisons import comparison, model_and_rows
from folders import refused, rows_file

from lorada.compare.comparison_rows import read_data
from lorada.compare.learning_rate import search_rate
from lorada.compare.make_plan import make_plan, steps_and_lengths
from lorada.compare.run import read
from lorada.compare.spec import (
    Comparison,
    asked_again,
    choices_of,
    comparison_of,
    parts_of,
    resumed_comparison,
)
from lorada.compare.stored_plan import saved_plan
from lorada.compare.trainings import comparison_jobs, train_and_score, trials_of
from lorada.data.rows.own_rows import load_rows
from lorada.data.rows.training_rows import training_rows
from lorada.data.scoring.commonest_answer import commonest_answer
from lorada.methods.sizes_and_rates import RATES
from lorada.runs.recipe import Recipe
from lorada.training.inputs import prepare_training
from lorada.training.setup import set_up
from lorada.training.train import train

on = fake_devices.on


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return model_and_rows(tmp_path_factory.mktemp("plan"))


def planned(asked):
    return make_plan(asked, *read(asked), print)


def test_budgets_that_lead_to_one_size_share_a_candidate(place):
    plan = planned(comparison(place, methods=["lora", "ia3"], budgets=["700", "720", "8%"]))
    budgets = [(each.method, each.budgets, each.trainable) for each in plan.candidates]
    assert budgets == [
        ("lora", {"700": False, "720": False}, 640),
        ("lora", {"8%": False}, 2560),
        ("ia3", {"700": False, "720": False, "8%": False}, 160),
    ]
    assert plan.candidates[0].parts["lora"]["r"] == 1


def test_a_plan_leaves_the_cards_to_the_jobs(place, on, monkeypatch):
    """What only a card takes is left out of it, and no context is kept on the first card."""
    used = []
    on("cuda")
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    training = {"tf32": True, "bf16": True, "num_train_epochs": 2}
    plan = planned(comparison(place, methods=["lora"], recipe={"training": training}))
    assert plan.steps == 8
    plan = planned(comparison(place, methods=["lora"], recipe={"dtype": "mixed_float16"}))
    assert plan.steps == 12
    assert used == []


def test_a_plan_that_was_saved_is_read_as_it_was(place, tmp_path):
    plan = planned(comparison(place, methods=["lora", "bitfit", "lmam"]))
    assert [each.reason is None for each in plan.candidates] == [True, False, True]
    plan.save(tmp_path)
    assert saved_plan(tmp_path) == plan
    assert saved_plan(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "training",
    [
        {"num_train_epochs": 2},
        {"num_train_epochs": 1.5, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 4, "dataloader_drop_last": True, "num_train_epochs": 1},
        {"max_steps": 3},
    ],
)
def test_the_steps_are_those_that_the_trainer_counts(place, tmp_path, training):
    training = {"report_to": [], **training}
    asked = comparison(place, methods=["lora"], recipe={"training": training})
    steps, _ = steps_and_lengths(asked, *read(asked))
    recipe = Recipe(**asked.recipe, method="lora", output=str(tmp_path / "run"))
    assert train(recipe, quiet=True).result.steps == steps


def test_rows_are_grouped_by_length_unless_the_user_says_otherwise(place):
    given = {"train_sampling_strategy": "random"}
    for training, strategy in (({}, "group_by_length"), (given, "random")):
        asked = comparison(place, methods=["lora"], recipe={"training": training})
        recipe = asked.run_recipe("lora", "-", training={"seed": 1})
        assert recipe.training == {"train_sampling_strategy": strategy, "seed": 1}


@pytest.mark.parametrize(("rows", "aside"), [(27, 8), (300, 30), (3000, 300), (9000, 300)])
def test_a_tenth_of_the_rows_is_set_aside_within_limits(place, rows, aside):
    made = [{"prompt": f"{i}?", "response": str(i)} for i in range(rows)]
    rows_file(place / f"{rows}.jsonl", made)
    asked = comparison(place, f"{rows}.jsonl", methods=["lora"])
    assert read_data(asked, "decoder").dev_rows == aside
    for trials in (0, 1):
        unsearched = asked.model_copy(update={"trials": trials})
        assert read_data(unsearched, "decoder").dev_rows == 0


def test_a_held_out_prompt_that_is_empty_is_refused_before_anything_trains(place):
    rows = [{"prompt": prompt, "response": "5"} for prompt in ("new", "")]
    rows_file(place / "gap.jsonl", rows)
    asked = comparison(place, methods=["lora"])
    asked = asked.model_copy(update={"held_out": str(place / "gap.jsonl")})
    refused("gap.jsonl row 2 has an empty prompt", lambda: read_data(asked, "decoder"))
    read_data(asked, "encoder_decoder")  # its tokenizer ends an empty text, too


def test_rows_of_a_table_and_of_json_are_known_to_be_the_same(place):
    rows_file(place / "numbers.jsonl", [{"text": f"a {i}", "label": i % 2} for i in range(20)])
    (place / "table.csv").write_text('text,label\n"a  3",1\nnew,0\n')
    asked = comparison(place, "numbers.jsonl", methods=["lora"])
    asked = asked.model_copy(update={"held_out": str(place / "table.csv")})
    refused("1 of 2 held-out rows", lambda: read_data(asked, "encoder"))


def test_copies_among_the_held_out_rows_are_said(place, caplog):
    rows_file(place / "copies.jsonl", [{"prompt": "new", "response": "5"}] * 3)
    asked = comparison(place, methods=["lora"])
    asked = asked.model_copy(update={"held_out": str(place / "copies.jsonl")})
    read_data(asked, "decoder")
    assert "2 of 3 held-out rows" in caplog.text
    caplog.clear()
    row = {"prompt": "new", "response": "5"}
    rows_file(place / "copies.jsonl", [{**row, "group": group} for group in "aab"])
    read_data(asked, "decoder")  # rows of a group count as one
    assert "1 of 3 held-out rows" in caplog.text


def test_a_rate_is_chosen_once_with_the_first_seed_and_all_runs_wait_for_it(place):
    asked = comparison(place, methods=["lora"], seeds=[4, 7], trials=2)
    plan = planned(asked)
    search, *runs = comparison_jobs(asked, plan, place)
    assert search.work.func is search_rate
    assert search.work.args[0].recipes[0].training["seed"] == 4
    assert search.folder == place / "trials" / "lora" / str(plan.candidates[0].trainable)
    assert [job.folder.name for job in runs] == ["seed4", "seed7"]
    for job in runs:
        assert job.work.func is train_and_score
        assert (job.work.args[1], job.after) == (search.folder, search.name)


def test_another_dev_seed_sets_other_rows_aside(place):
    recipe = Recipe(method="lora", model=str(place / "llama"), data=str(place / "train.jsonl"),
                    output="-", dev_rows=8)  # fmt: skip
    asides = [
        training_rows(recipe.model_copy(update={"dev_seed": seed}), "decoder")[1].rows
        for seed in (0, 0, 1)
    ]
    assert asides[0] == asides[1] != asides[2]


COMMONEST = {
    "label": ([{"text": "a", "label": n} for n in ("x", "y", "y")], "y"),
    "score": ([{"text": "a", "score": n} for n in (1, 2, 6)], 3.0),
    "choice": ([{"prompt": "a", "candidates": ["b", "c"], "answer": n} for n in (1, 0, 1)], 1),
    "prompt": ([{"prompt": "a", "response": n} for n in ("b", "c", "c")], "c"),
    "text": ([{"text": "a"}], None),
}


@pytest.mark.parametrize("form", COMMONEST)
def test_the_commonest_answer_is_that_of_the_rows_form(tmp_path, form):
    given, answer = COMMONEST[form]
    rows = load_rows(str(rows_file(tmp_path / "rows.jsonl", given)))
    assert rows.form == form
    assert commonest_answer(rows) == answer


@pytest.mark.parametrize(
    ("text", "method", "parts"),
    [
        ("lora", "lora", {}),
        ("lora:r=1", "lora", {"lora": {"r": 1}}),
        ("lora+lmam:lora.r=1:lmam.rank=2", "lora+lmam", {"lora": {"r": 1}, "lmam": {"rank": 2}}),
        ("lmam:rank=2:ablation=softmax", "lmam", {"lmam": {"rank": 2, "ablation": "softmax"}}),
        ("lora:target_modules=[a, b]", "lora", {"lora": {"target_modules": ["a", "b"]}}),
    ],
)
def test_a_name_with_settings_is_read(text, method, parts):
    assert parts_of(text) == (method, parts)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("lorra:r=1", "unknown method 'lorra'"),
        ("lora:r", "'r' is not a setting"),
        ("lora:=1", "'=1' is not a setting"),
        ("lora:r=", "'r=' is not a setting"),
        ("lora:rnk=1", "lora:rnk=1: unknown override 'rnk'"),
        ("lora:r=many", "lora:r=many: lora.r='many'"),
        ("lora:lmam.rank=1", "lora has no part lmam, only lora"),
        ("full:rank=1", "unknown override 'rank'"),
        ("lora+lmam:target_modules=[a]", "a setting of several sections"),
        ("lora:r=1:lora.r=1", "lora:r=1:lora.r=1: lora.r is given twice: leave one of them out"),
        ("lora+lmam:rank=1:r=2:lmam.rank=1", "lmam.rank is given twice"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_text(text, error):
    with pytest.raises(ValueError, match=error.replace("[", r"\[")):
        parts_of(text)


@pytest.mark.parametrize(
    ("text", "alternatives"),
    [
        ("lmam:init=zero_left|normal", "lmam:init=zero_left,lmam:init=normal"),
        ("lmam:rank=1|2:init=zero|normal", "lmam:rank=1:init=zero,lmam:rank=1:init=normal"),
        ("lmam:map_learning_rate=0.4x|1x", "lmam:map_learning_rate=0.4x,lmam:map_learning_rate=1x"),
        ("quanta:dims=4-8|8-4", "quanta:dims=4-8,quanta:dims=8-4"),
        ("lora:use_rslora=true|false", "lora:use_rslora=true,lora:use_rslora=false"),
        ("lora:r=4|", "lora:r=4"),
    ],
)
def test_a_choice_between_values_that_are_no_numbers_is_refused_with_what_to_write(
    place, text, alternatives
):
    asked = comparison(place, methods=[text])
    remedy = "| chooses between numbers only: write the method once for each value, as"
    with pytest.raises(ValueError, match=re.escape(f": {remedy} {alternatives}") + "$"):
        asked.check()


def test_variants_of_one_method_are_candidates_of_their_own(place):
    asked = comparison(place, methods=["lora:r=1", "lora:r=2", "lora+lmam:lora.r=1"], trials=0)
    plan = planned(asked)
    one, two, stack = plan.candidates
    assert (one.parts, two.parts) == ({"lora": {"r": 1}}, {"lora": {"r": 2}})
    assert two.trainable == 2 * one.trainable < stack.trainable
    jobs = comparison_jobs(asked, plan, place / "out")
    assert len({job.folder for job in jobs}) == 9
    recipes = {one.method: one.parts for job in jobs for one in job.work.args[0].recipes}
    assert recipes["lora+lmam"] == {"lora": {"r": 1}}


def test_a_budget_grows_only_what_a_variant_does_not_set(place):
    asked = comparison(place, methods=["lora+lmam:lora.r=1"], budgets=["60%"], trials=0)
    (found,) = planned(asked).candidates
    assert found.parts["lora"] == {"r": 1}
    assert found.parts["lmam"]["rank"] > 2


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("lora", None),
        ("lmam", None),  # a multiple of the learning rate, which is searched
        ("lmam:map_learning_rate=1e-3", None),  # it stays as it was set, here and below
        ("lora+lmam", 0.4 * 3e-4),
        ("lorada_la", 0.4 * 1e-4),
        ("lora+lmam:map_learning_rate=1e-3", None),
        ("lora+lmam:map_learning_rate=null", None),
    ],
)
def test_the_rate_of_a_map_is_searched_unless_it_is_set_beside_other_parts(place, method, found):
    asked = comparison(place, methods=[method])
    (candidate,) = planned(asked).candidates
    assert candidate.map_rate == (None if found is None else pytest.approx(found))


@pytest.mark.parametrize("method", ["lora", "lmam", "shira", "lora:r=1|2"])
@pytest.mark.parametrize("trials", [0, 1])
def test_without_a_search_a_run_has_the_learning_rate_of_lorada_train(
    place, tmp_path, method, trials
):
    asked = comparison(place, methods=[method], seeds=[1], trials=trials)
    plan = planned(asked)
    *_, run = comparison_jobs(asked, plan, tmp_path)
    compared = run.work.args[0].chosen_recipe(None).training["learning_rate"]
    recipe = asked.run_recipe(method, tmp_path / "trained")
    trained = set_up(prepare_training(recipe), [], quiet=True).trainer.args.learning_rate
    assert compared == plan.candidates[0].default_rate == trained


def test_a_search_begins_with_the_rate_that_the_authors_of_a_method_use(place):
    (candidate,) = planned(comparison(place, methods=["lora"], trials=2)).candidates
    assert candidate.default_rate == RATES["lora"] == 3e-4


def test_with_given_rates_the_search_of_a_maps_rate_starts_beside_the_middle_one(place, tmp_path):
    asked = comparison(place, methods=["lora+lmam"], seeds=[1], rates=[1e-3, 3e-3, 1e-2])
    search, _ = comparison_jobs(asked, planned(asked), tmp_path)
    assert search.work.args[0].map_rate == pytest.approx(0.4 * 3e-3)


def test_several_settings_are_one_candidate_of_which_a_search_chooses(place, tmp_path):
    asked = comparison(place, methods=["lora:r=1|4|2", "lora+lmam:rank=1|2:lora.r=1|2"], trials=1)
    asked.check()
    plan = planned(asked)
    plan.save(tmp_path)
    assert saved_plan(tmp_path) == plan
    one, stack = plan.candidates
    assert [each.parts for each in one.choices] == [{"lora": {"r": rank}} for rank in (1, 4, 2)]
    assert (one.method, one.parts) == ("lora:r=1|4|2", {"lora": {"r": 4}})
    assert [each.method for each in stack.choices][:2] == [
        "lora+lmam:rank=1:lora.r=1", "lora+lmam:rank=1:lora.r=2"
    ]  # fmt: skip
    jobs = comparison_jobs(asked, plan, tmp_path)
    works = [job.work.func.__name__ for job in jobs]
    assert works == [*["search_rate"] * 2, *["train_and_score"] * 6]
    assert jobs[0].name.startswith(stack.method)  # four trials, before three
    assert trials_of(asked, plan, one) == (3, 3)
    for regex in ("lora:target_modules=.*(q|v)_proj", "lora:target_modules=e|e"):
        assert choices_of(regex) == [regex]


def test_a_setting_that_cannot_be_is_the_reason_that_none_of_them_runs(place):
    asked = comparison(place, methods=["lora:r=1|0", "ia3"])
    candidate, _ = planned(asked).candidates
    assert candidate.method == "lora:r=1|0"
    assert candidate.reason.startswith("lora:r=0: ")


@pytest.mark.parametrize(
    ("given", "jobs"), [({"trials": 1}, 3), ({"trials": 1, "rates": [2e-3]}, 3), ({"trials": 2}, 4)]
)
def test_there_is_no_search_where_there_is_nothing_to_choose(place, given, jobs):
    asked = comparison(place, methods=["lora+lmam"], **given)
    plan = planned(asked)
    found = comparison_jobs(asked, plan, place / "out")
    assert len(found) == jobs
    assert trials_of(asked, plan, plan.runnable[0]) == ((0, 0) if jobs == 3 else (10, 5))


def test_a_setting_cannot_lead_out_of_the_folder(place):
    asked = comparison(place, methods=["lora:target_modules=.*q_proj|/../../x"], trials=0)
    plan = planned(asked)
    assert "/.." not in plan.candidates[0].path


def test_given_rates_are_the_trials_and_must_lie_in_the_range(place):
    recipe = Recipe(model="m", method="full", output="-", data="a.jsonl")
    asked = {"methods": ["lora"], "held_out": "b.jsonl", "rates": [1e-3, 1e-2]}
    assert comparison_of(recipe, asked).trials == 2
    with pytest.raises(ValueError, match="--trials 3 and 2 --rates: leave out --trials"):
        comparison_of(recipe, {**asked, "trials": 3})
    with pytest.raises(ValueError, match=r"rates\.0\s+Input should be greater than or equal to"):
        comparison(place, methods=["lora"], rates=[0.0])
    with pytest.raises(ValueError, match=r"--rates names 0\.001 twice"):
        comparison(place, methods=["lora"], rates=[1e-3, 1e-3]).check()


def test_a_comparison_goes_on_with_its_rows_in_another_folder(tmp_path):
    recipe = {"model": "minilm-l6", "task": "sst2", "data_dir": str(tmp_path / "gone")}
    saved = Comparison(recipe=recipe, methods=["lora"])
    for options in ({"data_dir": str(tmp_path)}, {}):
        now = asked_again(saved, [], options).complete()
        assert resumed_comparison(tmp_path, saved, now, {}).recipe == {**recipe, **options}
