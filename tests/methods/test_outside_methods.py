"""Methods of other packages: found by name, imported only if the user says so, like any other."""

import json
import sys
from functools import partial
from importlib.metadata import EntryPoint

import outside_package
import pytest
import torch
from folders import adapter_weights, refused
from trained_runs import QUICK, run_recipe

from lorada import PeftMethod, build_method
from lorada.compare.size_for import size_for
from lorada.compare.spec import choices_of, parts_of
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.methods.lookup import allow_methods, describe, method_named
from lorada.methods.sizes_and_rates import default_rate
from lorada.support import outside_packages
from lorada.support.outside_packages import allow_packages, allowed_packages, package_options
from lorada.testing import CHECKS, check_method
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

NAME = "gainlora:gain"
NOT_NAMED = r"^method gainlora:gain is of the package gainlora, whose code runs only if you name it"
recipe = partial(run_recipe, [*QUICK, "max_steps=3", "learning_rate=1e-2"], rows="rows")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder that a command runs in, with the package."""
    outside_package.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    with outside_package.forgotten_after(monkeypatch):
        yield tmp_path


def forget():
    """As in a process that has not imported the package, whose user has named none."""
    sys.modules.pop("gainlora", None)
    outside_packages.os.environ.pop(outside_packages.ALLOWED, None)
    method_named.cache_clear()


def test_a_method_of_a_package_has_its_page_its_rate_and_its_settings():
    allow_methods([f"{NAME}:gain=2"])
    assert allowed_packages() == ["gainlora"]
    page = describe(NAME)
    assert page["summary"] == "GainLoRA: LoRA whose outputs have a learned gain"
    assert page["parts"] == ["gainlora"]
    assert default_rate(NAME) == 3e-4
    assert default_rate(f"{NAME}+lmam") == 3e-4
    name, parts = parts_of(f"lora+{NAME}:gainlora.r=4:gain=2")
    assert (name, parts) == (f"lora+{NAME}", {"gainlora": {"r": 4, "gain": 2.0}})
    assert choices_of(f"{NAME}+lmam:gain=1|2") == [f"{NAME}+lmam:gain=1", f"{NAME}+lmam:gain=2"]


def test_a_budget_chooses_its_size_and_alpha_follows(place):
    given = {"method": NAME, "model": str(place / "bert"), "output": "-"}
    sized = size_for(load_recipe(None, [], given), "20%")
    assert sized.counts["trainable"] <= 0.2 * sized.counts["total"]
    settings = sized.parts["gainlora"]
    assert settings["r"] > 1
    assert settings["alpha"] == 2 * settings["r"]


@pytest.mark.parametrize("method", [NAME, f"lora+{NAME}+lmam"])
def test_a_run_of_it_is_found_by_a_process_that_may_import_the_package(place, tmp_path, method):
    run = train(recipe(place, tmp_path / "run", method=method), quiet=True).run
    assert any("gainlora_g" in name for name in adapter_weights(run))
    ids = torch.arange(3, 12)[None]
    expected = load_run(run).model(ids).logits
    assert "import gainlora" in (run / "adapter" / "README.md").read_text()
    forget()
    message = "gainlora, whose code runs only if you name it: write `lorada --package gainlora …`"
    refused(message, lambda: load_run(run))
    allow_packages(["gainlora"])
    again = load_run(run)
    assert torch.equal(again.model(ids).logits, expected)
    assert evaluate(again, str(place / "rows.jsonl"))["n"] > 0
    more = recipe(place, tmp_path / "more", method=method, from_adapter=str(run))
    assert train(more, quiet=True).result.steps == 3


def test_what_a_file_names_is_never_imported(place, tmp_path):
    file = tmp_path / "shared.yaml"
    file.write_text(json.dumps({"method": NAME, "model": str(place / "llama"), "output": "-"}))
    refused(NOT_NAMED, lambda: load_recipe(str(file), [], {}))
    assert "gainlora" not in sys.modules
    # Named by the user as well, it is.
    assert load_recipe(str(file), [], {"method": NAME}).method == NAME


def test_a_shared_adapter_with_an_unknown_tuner_is_refused_in_one_line(place, tmp_path):
    run = train(recipe(place, tmp_path / "run", method=NAME), quiet=True).run
    adapter = (run / "adapter").rename(tmp_path / "shared")
    forget()
    for table in outside_package.TABLES:
        for kind in [kind for kind in table if str(kind).upper().endswith("GAINLORA")]:
            del table[kind]
    start = partial(recipe, place, tmp_path / "new", method="lora", from_adapter=str(adapter))
    message = "peft_type='GAINLORA', which neither peft nor lorada knows; .* --package NAME"
    refused(message, lambda: train(start(), quiet=True))
    assert "gainlora" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gainlora:nothing", "the module gainlora has no 'nothing'"),
        ("gainlora:GainLoraConfig", r"does not say its size: make it a lorada\.PeftMethod"),
        ("gainlora:math", "does not say its size"),
        ("nowhere:gain", "the package nowhere cannot be imported: No module named 'nowhere'"),
        ("lora:gain", "unknown method 'lora:gain'"),
        (":gain", "unknown method ':gain'"),
        (f"{NAME}+gainlora:gain", "each bring a gainlora part"),
    ],
)
def test_a_name_that_is_no_method_is_refused_in_one_line(name, message):
    refused(message, lambda: build_method(name, None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "does not say which setting is its size"),
        ({"size": "rank"}, "names 'rank', which is no setting of it"),
        ({"size": "r", "scaled_with": ["lora_alpha"]}, "names 'lora_alpha'"),
        ({"size": "r", "learning_rate": 3.0}, "give one from 1e-05 to 0.1"),
    ],
)
def test_a_method_that_says_too_little_is_refused_in_one_line(folder, settings, message):
    package = outside_package.load(folder)
    refused(message, lambda: PeftMethod(package.GainLoraConfig, **settings))


def test_an_entry_point_makes_a_name_a_method_that_every_process_knows(monkeypatch):
    entry = EntryPoint("gain", "gainlora:gain", outside_packages.GROUP)
    monkeypatch.setattr(outside_packages, "entry_points", lambda group: [entry])
    outside_packages.installed_methods.cache_clear()
    try:
        assert method_named("gain+lmam").part_names == ["lmam", "gainlora"]
        assert default_rate("gain") == 3e-4
        assert allowed_packages() == []
        assert package_options("gain+lmam") == []
    finally:
        outside_packages.installed_methods.cache_clear()


def test_a_suggested_command_names_the_package():
    assert package_options(f"lora+{NAME}") == ["--package", "gainlora"]
    assert package_options("lora+lmam") == []


def test_the_method_of_the_guide_keeps_all_contracts(folder):
    check_method(outside_package.load(folder).gain)


LOSES_GAINS = """
    target_module_mapping = {}

    @classmethod
    def _get_adapter_state_dict(cls, **kwargs):
        states = super()._get_adapter_state_dict(**kwargs)
        return {name: state for name, state in states.items() if "gainlora_g" not in name}
"""
# A bug in the tuner → the contract that it breaks, and what is said.
BUGS = {
    "starts away from the base": (
        "nn.Parameter(torch.zeros(width_out, config.r))",
        "nn.Parameter(torch.ones(width_out, config.r))",
        "starts_at_the_base", "where it should change none",
    ),
    "merges without its scale": (
        "weight.data += self.change(name).detach()",
        "weight.data += self.change(name).detach() / self.scaling[name]",
        "merges_to_the_same", "merged into a LLaMA it computes something else",
    ),
    "does not take a merge back": (
        "weight.data -= self.change(self.merged_adapters.pop()).detach()",
        "weight.data -= 0 * self.change(self.merged_adapters.pop()).detach()",
        "merges_to_the_same", "taken out again",
    ),
    "loses a parameter on save": (
        "    target_module_mapping = {}\n", LOSES_GAINS,
        "comes_back_from_its_file", r"its file lacks \S+gainlora_g",
    ),
    "forgets to divide by r": (
        "config.alpha / config.r", "config.alpha", "heeds_its_scale", "divide alpha by r",
    ),
    "forgets alpha": (
        "config.alpha / config.r", "1.0", "heeds_its_scale", "alpha doubled changes nothing",
    ),
    "does not use a parameter": (
        "y + (self.scaling[name] * self.gainlora_g[name] *", "y + (self.scaling[name] *",
        "trains_its_parameters_alone", r"gainlora_g\.default trains and gets no gradient",
    ),
    "cannot be switched off": (
        "if self.disable_adapters or self.merged:", "if self.merged:",
        "switches_off", "let forward heed disable_adapters",
    ),
    "has a size that trains no more": (
        'size="r",\n    scaled_with=["alpha"],', 'size="alpha",',
        "grows_with_its_size", "alpha=32 trains .* name another setting as its size",
    ),
    "widens a base in 16 bits": (
        "(low @ b.T)).to(y.dtype)", "(low @ b.T))", "runs_in_16_bits",
        "in bfloat16 fails .*: give back the dtype",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_breaks_the_contract_that_it_is_about(folder, bug):
    before, after, check, message = BUGS[bug]
    outside_package.write(folder, before, after)
    method = outside_package.load(folder).gain
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](method)
