"""The table of costs: each method beside the same method written directly, on a tiny LLaMA.

These are the slow twins of whole methods: loss, gradients and update of both are the same.
"""

import gc
from dataclasses import replace

import costs
import costs_page
import direct
import pytest
from costs import DisagreementError, Options, both, check, text_batch
from folders import llama_folder
from pairs import PAIRS, written_by
from rich.console import Console

from lorada import METHODS
from lorada.runs.models.loading import load_model

# Garbage is collected before each timing; half a second each time with all that is imported.
gc.freeze()


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    # Wide enough that attention is not flat; without the dropout that would draw in the check.
    llama_folder(folder, num_hidden_layers=3, attention_dropout=0.0, initializer_range=0.2)
    return Options(model=str(folder), length=16, batch=3, repetitions=2, threads=1)


def sides(name, options):
    pair = PAIRS[name]
    base = load_model(options.model)[0]
    batch = text_batch(options, options.batch, padded=pair.padded)
    return pair, *both(pair, base, batch), batch


@pytest.mark.parametrize("name", PAIRS)
def test_a_method_computes_what_its_direct_form_does(name, options):
    check(*sides(name, options))


def test_every_method_that_llama_has_is_in_the_table():
    on_llama = {n for n, m in METHODS.items() if "llama" in m.parts or m.trainable} - {"bitfit"}
    assert on_llama <= {pair.method for pair in PAIRS.values()}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("lmam", ".w_b"),
        ("quanta", ".3_1"),
        ("lamda", ".M"),
        ("omoe", ".router"),
        ("prefix", ".key"),
    ],
)
def test_another_parameter_is_noticed(name, part, options):
    pair, mine, other, batch = sides(name, options)
    changed = next(p for n, p in mine.parameters.items() if n.endswith(part))
    changed.data[..., -1] += 0.1
    with pytest.raises(DisagreementError):
        check(pair, mine, other, batch)


@pytest.mark.parametrize(
    ("name", "procedure"), [("sora", "soft_threshold"), ("owlore", "galore_step")]
)
def test_another_update_is_noticed(name, procedure, options, monkeypatch):
    pair, mine, other, batch = sides(name, options)
    monkeypatch.setattr(direct, procedure, lambda *args, **kwargs: None)
    with pytest.raises(DisagreementError, match="the update of"):
        check(pair, mine, other, batch)


def test_layers_that_another_step_would_draw_are_noticed(options):
    pair, mine, other, batch = sides("ist", options)
    before = other.before
    other.before = lambda t: before(t + 3)
    with pytest.raises(DisagreementError, match="only one side has a gradient of"):
        check(pair, mine, other, batch)


def test_a_padded_batch_holds_rows_of_different_lengths(options):
    batch = text_batch(options, 4, padded=True)
    assert batch["attention_mask"].sum(1).tolist() == [16, 14, 12, 10]
    assert ((batch["labels"] == -100) == (batch["attention_mask"] == 0)).all()


def test_the_table_is_kept_row_by_row_and_not_measured_twice(
    options, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(costs, "PAIRS", {name: PAIRS[name] for name in ("noise", "ist")})
    files = tmp_path / "costs.json", tmp_path / "costs.md"
    results = costs.run(options, ["ist"], *files)
    row = results["rows"]["ist"]
    assert row["ours_ms"] > 0
    assert row["lowest"] <= row["highest"]
    assert row["scoring"]["scores_ms"] > 0
    again = costs.run(options, [], *files)["rows"]
    assert again.keys() == {"ist", "noise"}
    assert again["ist"] == row
    assert costs.load(Options(model=options.model), files[0])["rows"] == {}
    page = files[1].read_text()
    assert "| noise | the same, to see the noise |" in page
    assert "IST's scores" in page
    monkeypatch.setattr(costs_page, "Console", lambda: Console(width=200))
    costs_page.show(results)
    assert "requires_grad flips" in capsys.readouterr().out


def test_what_does_not_agree_is_not_timed(options, tmp_path, monkeypatch):
    def doubled(base, tensors):
        direct.series(base, {name: 2 * tensor for name, tensor in tensors.items()})

    wrong = replace(PAIRS["series"], other=written_by(doubled))
    monkeypatch.setitem(PAIRS, "series", wrong)
    with pytest.raises(DisagreementError, match="series was not timed: the loss is"):
        costs.run(options, ["series"], tmp_path / "costs.json", tmp_path / "costs.md")
    assert not (tmp_path / "costs.json").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--methods", "lmam,lora_"], "--methods lora_: no such row; there are noise, lmam"),
        (["--repetitions", "0"], "--repetitions 0 must be at least 1"),
        (["--model", "smollm3"], "unknown model 'smollm3'"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, error, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["costs.py", *arguments, "--output", str(tmp_path)])
    monkeypatch.setattr(costs.logging, "disable", lambda level: None)
    with pytest.raises(SystemExit) as exit_:
        costs.main()
    assert exit_.value.code == 2
    assert error in capsys.readouterr().err.splitlines()[-1]
