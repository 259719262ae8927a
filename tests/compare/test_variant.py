"""Methods with settings of their parts, as ``--methods`` of a comparison names them."""

import pytest
from compared import comparison, model_and_rows

from lorada.compare.make_plan import make_plan
from lorada.compare.plan import saved_plan
from lorada.compare.run import read
from lorada.compare.spec import choices_of, comparison_of, parts_of
from lorada.compare.trainings import comparison_jobs, trials_of
from lorada.runs.recipe import Recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return model_and_rows(tmp_path_factory.mktemp("variant"))


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


def test_variants_of_one_method_are_candidates_of_their_own(place):
    asked = comparison(place, methods=["lora:r=1", "lora:r=2", "lora+lmam:lora.r=1"], trials=0)
    plan = make_plan(asked, *read(asked), print)
    one, two, stack = plan.candidates
    assert (one.parts, two.parts) == ({"lora": {"r": 1}}, {"lora": {"r": 2}})
    assert two.trainable == 2 * one.trainable < stack.trainable
    jobs = comparison_jobs(asked, plan, place / "out")
    assert len({job.folder for job in jobs}) == 9
    recipes = {one.method: one.parts for job in jobs for one in job.work.args[0].recipes}
    assert recipes["lora+lmam"] == {"lora": {"r": 1}}


def test_a_budget_grows_only_what_a_variant_does_not_set(place):
    asked = comparison(place, methods=["lora+lmam:lora.r=1"], budgets=["60%"], trials=0)
    (found,) = make_plan(asked, *read(asked), print).candidates
    assert found.parts["lora"] == {"r": 1}
    assert found.parts["lmam"]["rank"] > 2


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("lora", (None, False)),
        ("lmam", (5e-3, False)),
        ("lmam:map_learning_rate=1e-3", (1e-3, False)),
        ("lora+lmam", (5e-3, True)),
        ("lorada_la", (5e-3, True)),
        ("lora+lmam:map_learning_rate=1e-3", (None, True)),  # it stays as it was set
        ("lora+lmam:map_learning_rate=null", (None, True)),
    ],
)
def test_the_rate_of_a_map_is_searched_unless_it_is_set_beside_other_parts(place, method, found):
    asked = comparison(place, methods=[method])
    (candidate,) = make_plan(asked, *read(asked), print).candidates
    assert (candidate.map_rate, candidate.beside) == found


def test_several_settings_are_one_candidate_of_which_a_search_chooses(place, tmp_path):
    asked = comparison(place, methods=["lora:r=1|4|2", "lora+lmam:rank=1|2:lora.r=1|2"], trials=1)
    asked.check()
    plan = make_plan(asked, *read(asked), print)
    plan.save(tmp_path)
    assert saved_plan(tmp_path) == plan
    one, stack = plan.candidates
    assert [each.parts for each in one.choices] == [{"lora": {"r": rank}} for rank in (1, 4, 2)]
    assert (one.method, one.parts) == ("lora:r=1|4|2", {"lora": {"r": 4}})
    assert [each.method for each in stack.choices][:2] == [
        "lora+lmam:rank=1:lora.r=1", "lora+lmam:rank=1:lora.r=2"
    ]  # fmt: skip
    jobs = comparison_jobs(asked, plan, tmp_path)
    assert [job.work.func.__name__ for job in jobs] == [
        "search_rate", *["train_and_score"] * 3
    ] * 2  # fmt: skip
    assert trials_of(asked, plan, one) == (3, 3)
    for regex in ("lora:target_modules=.*(q|v)_proj", "lora:target_modules=e|e"):
        assert choices_of(regex) == [regex]


def test_a_setting_that_cannot_be_is_the_reason_that_none_of_them_runs(place):
    asked = comparison(place, methods=["lora:r=1|0", "ia3"])
    candidate, _ = make_plan(asked, *read(asked), print).candidates
    assert candidate.method == "lora:r=1|0"
    assert candidate.reason.startswith("lora:r=0: ")


@pytest.mark.parametrize(
    ("given", "jobs"),
    [({"trials": 1}, 3), ({"trials": 1, "rates": [2e-3]}, 3), ({"trials": 2}, 4)],
)
def test_there_is_no_search_where_there_is_nothing_to_choose(place, given, jobs):
    asked = comparison(place, methods=["lora+lmam"], **given)
    plan = make_plan(asked, *read(asked), print)
    found = comparison_jobs(asked, plan, place / "out")
    assert len(found) == jobs
    assert trials_of(asked, plan, plan.runnable[0]) == ((0, 0) if jobs == 3 else (10, 5))


def test_a_setting_cannot_lead_out_of_the_folder(place):
    asked = comparison(place, methods=["lora:target_modules=.*q_proj|/../../x"], trials=0)
    plan = make_plan(asked, *read(asked), print)
    assert "/.." not in plan.candidates[0].path


def test_given_rates_are_the_trials_and_must_lie_in_the_range(place):
    recipe = Recipe(model="m", method="full", output="-", data="a.jsonl")
    asked = {"methods": ["lora"], "held_out": "b.jsonl", "rates": [1e-3, 1e-2]}
    assert comparison_of(recipe, asked).trials == 2
    with pytest.raises(ValueError, match="--trials 3 and 2 --rates: leave out --trials"):
        comparison_of(recipe, {**asked, "trials": 3})
    for rates, error in (([0.0], "--rates 0 must be"), ([1e-3, 1e-3], "--rates names 0.001 twice")):
        with pytest.raises(ValueError, match=error):
            comparison(place, methods=["lora"], rates=rates).check()
