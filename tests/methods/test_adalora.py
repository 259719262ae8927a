"""AdaLoraCallback: pruning inside the Trainer, alone and in a stack, saved, loaded and resumed."""

import pytest
import torch
from callback_runs import trainer as run_of
from conftest import TINY, assert_close
from folders import refused
from peft import AdaLoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file
from stacks import VALUE, batch, bottleneck, lmam, logits, lora, moved
from torch import nn
from trained_runs import assert_same
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from lorada import LamdaConfig, LoradaConfig, SoraConfig
from lorada.methods.callbacks.adalora_pruning import AdaLoraCallback, schedule
from lorada.tuners.base.part_config import STACK
from lorada.tuners.stack.stack_config import UNSTACKABLE

pytestmark = pytest.mark.fp64

STEPS, MODULES = 12, 4  # q_proj and o_proj of two layers


def adalora(**options) -> AdaLoraConfig:
    schedule = {"tinit": 2, "tfinal": 3, "deltaT": 2, "total_step": 10_000}
    settings = {"init_r": 4, "target_r": 2, "task_type": "CAUSAL_LM", **schedule}
    return AdaLoraConfig(target_modules=["q_proj", "o_proj"], **{**settings, **options})


def stack(**options) -> LoradaConfig:
    parts = [lmam(), adalora(**options), bottleneck()]
    return LoradaConfig(parts=parts, task_type="CAUSAL_LM")


def trainer(folder, config, **options) -> Trainer:
    return run_of(config, folder, AdaLoraCallback(), **{"learning_rate": 0.05, **options})


def ranks(folder) -> list[int]:
    saved = load_file(folder / "adapter_model.safetensors")
    return [len(value) for key, value in saved.items() if key.endswith("lora_E")]


def test_a_training_begins_without_the_scores_of_one_before():
    model = get_peft_model(TINY["llama"](), adalora())
    allocator = model.base_model.rankallocator
    allocator.exp_avg_ipt["of a training before"] = torch.ones(4)
    state, args = TrainerState(max_steps=STEPS), TrainingArguments("unused")
    AdaLoraCallback().on_train_begin(args, state, None, model=model)
    assert allocator.exp_avg_ipt == {}


def test_the_step_that_ends_is_counted_so_that_the_last_one_prunes(monkeypatch):
    model, callback, counted = get_peft_model(TINY["llama"](), adalora()), AdaLoraCallback(), []
    args = TrainingArguments("unused")
    callback.on_train_begin(args, TrainerState(max_steps=STEPS), None, model=model)
    monkeypatch.setattr(model.base_model, "update_and_allocate", counted.append)
    for step in range(STEPS):
        callback.on_optimizer_step(args, TrainerState(global_step=step), None)
    assert counted == [*range(1, STEPS + 1)]


@pytest.mark.more
@pytest.mark.parametrize("config", [adalora, stack], ids=["alone", "stack"])
@pytest.mark.parametrize("schedule", [{}, {"tfinal": 0, "deltaT": 50}], ids=["phases", "no-last"])
def test_training_prunes_to_the_target_and_what_is_saved_loads(tmp_path, config, schedule):
    run = trainer(tmp_path, config(**schedule))
    run.train()
    model, inputs = run.model.eval(), batch("llama")
    expected = logits(model, inputs)
    values = [p for n, p in model.named_parameters() if "lora_E" in n]
    assert len(values) == MODULES
    assert sum(int((p != 0).sum()) for p in values) == 2 * MODULES

    model.save_pretrained(tmp_path / "adapter")
    assert sum(ranks(tmp_path / "adapter")) == 2 * MODULES
    assert sorted(ranks(tmp_path / "adapter")) != [4] * MODULES
    loaded = PeftModel.from_pretrained(TINY["llama"](), tmp_path / "adapter")
    assert_close(logits(loaded, inputs), expected)
    assert_close(logits(model, inputs), expected)


@pytest.mark.more
def test_stacks_with_other_ranks_left_load_onto_one_model(tmp_path):
    inputs, expected = batch("llama"), {}
    for name, rate in (("default", 0.05), ("other", 0.2)):
        run = trainer(tmp_path, stack(), learning_rate=rate)
        run.train()
        expected[name] = logits(run.model.eval(), inputs)
        run.model.save_pretrained(tmp_path / name)
    assert ranks(tmp_path / "default") != ranks(tmp_path / "other")
    model = PeftModel.from_pretrained(TINY["llama"](), tmp_path / "default")
    model.load_adapter(tmp_path / "other", "other")
    for name, found in expected.items():
        model.set_adapter(name)
        assert_close(logits(model, inputs), found)
    model.save_pretrained(tmp_path / "again")
    assert ranks(tmp_path / "again" / "other") == ranks(tmp_path / "other")


BESIDE = {
    "sora around it": lambda: [adalora(), SoraConfig(rank=2, target_modules=["q_proj", "v_proj"])],
    "sora in it": lambda: [SoraConfig(rank=2, target_modules=["q_proj", "v_proj"]), adalora()],
    "lamda": lambda: [LamdaConfig(rank=3, target_modules=["q_proj"]), adalora()],
    "lora first": lambda: [lora("llama", VALUE), adalora()],
    "lora last": lambda: [adalora(), lora("llama", VALUE)],
}


@pytest.mark.more
@pytest.mark.parametrize("parts", BESIDE.values(), ids=BESIDE)
def test_only_its_own_ranks_are_counted_and_pruned_beside_a_part_with_the_same_names(
    tmp_path, parts
):
    run = trainer(tmp_path, LoradaConfig(parts=parts(), task_type="CAUSAL_LM"))
    run.train()
    (tuner,) = [each for each in run.model.base_model.tuners() if isinstance(each, AdaLoraModel)]
    assert tuner.rankallocator.init_bgt == 4 * MODULES
    assert tuner.rankallocator.target_bgt == 2 * MODULES
    values = [p for n, p in run.model.named_parameters() if "lora_E" in n]
    assert sum(int((p != 0).sum()) for p in values) == 2 * MODULES

    model, inputs = run.model.eval(), batch("llama")
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(TINY["llama"](), tmp_path / "adapter")
    assert_close(logits(loaded, inputs), logits(model, inputs))


@pytest.mark.parametrize("parts", BESIDE.values(), ids=BESIDE)
def test_the_regulariser_of_a_stack_is_that_of_peft_alone_in_value_and_gradients(parts):
    alone, stacked = (
        moved(TINY["llama"](), config).double()
        for config in (adalora(), LoradaConfig(parts=parts(), task_type="CAUSAL_LM"))
    )

    def own(model) -> dict[str, nn.Parameter]:
        layers = {n: m for n, m in model.named_modules() if isinstance(m, AdaLoraLayer)}
        return {
            f"{name.removesuffix('.base_layer')}.{kind}": getattr(layer, kind)["default"]
            for name, layer in layers.items()
            for kind in ("lora_A", "lora_B")
        }

    factors = own(alone)
    with torch.no_grad():
        for name, parameter in own(stacked).items():
            parameter.copy_(factors[name])
    inputs, found = batch("llama"), []
    inputs["labels"] = inputs["input_ids"]
    for model in (alone, stacked):
        without = model.get_base_model()(**inputs).loss
        if model is stacked:  # a held-out loss is that of the model alone
            assert_close(model(**inputs).loss, without)
        added = model.train()(**inputs).loss - without
        found.append((added, torch.autograd.grad(added, [*own(model).values()])))
    (expected, gradients), (added, ours) = found
    assert_close(added, expected)
    assert len(ours) == 2 * MODULES
    for mine, gradient in zip(ours, gradients, strict=True):
        assert_close(mine, gradient)


SHARES = {"tinit": 0.125, "tfinal": 0.5, "deltaT": 0.0015}


@pytest.mark.parametrize(
    ("phases", "steps", "said"),
    [
        ((100, 0.5, 1), 100, "tinit=100 and tfinal=0 leave no step of 100 to prune in"),
        (tuple(SHARES.values()), 1, "tinit=0 and tfinal=0 leave no step of 1 to prune in"),
        ((0, 0, 2), 1, "tinit=0 and tfinal=0 leave no step of 1 to prune in"),
        ((0, 11, 2), 12, "tinit=0 and tfinal=11 leave no step of 12 to prune in"),
    ],
)
def test_phases_that_leave_no_step_to_prune_in_are_refused(phases, steps, said):
    with pytest.raises(ValueError, match=said):
        schedule(phases, steps)


@pytest.mark.more
@pytest.mark.parametrize("steps", [2, 3, 16])
def test_runs_of_any_length_get_the_phases_and_end_at_the_target(tmp_path, steps):
    ranks_left = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            values = [p for n, p in kwargs["model"].named_parameters() if "lora_E" in n]
            ranks_left.append(sum(int((p != 0).sum()) for p in values))

    run = trainer(tmp_path, adalora(**SHARES), max_steps=steps)
    run.add_callback(Watch())
    run.train()
    config = run.model.peft_config["default"]
    assert (config.tinit, config.tfinal) == (steps // 8, min(steps // 2, steps - 2))
    assert ranks_left[-1] == 2 * MODULES
    if steps == 16:
        assert ranks_left[:2] == [4 * MODULES] * 2, "no rank goes in the first phase"
        assert 2 * MODULES < ranks_left[4] < 4 * MODULES
        assert ranks_left[7:] == [2 * MODULES] * 9, "ranks are fixed in the last phase"
        saved = run.model.peft_config["default"].to_dict()
        assert [type(saved[name]) for name in SHARES] == [int] * 3


@pytest.mark.more
@pytest.mark.parametrize(
    ("config", "at"),
    [
        pytest.param(adalora, 6, id="alone, while pruning", marks=pytest.mark.slow),
        pytest.param(adalora, 10, id="alone, in the last phase"),
        pytest.param(stack, 6, id="stack, while pruning"),
        pytest.param(stack, 10, id="stack, in the last phase", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_where_one_that_never_stopped_does(tmp_path, config, at):
    phases = SHARES if at == 6 else {}
    whole = trainer(tmp_path / "whole", config(**phases))
    whole.train()
    first = trainer(tmp_path / "cut", config(**phases), save_strategy="steps", save_steps=at)
    first.train()
    checkpoint = str(tmp_path / "cut" / f"checkpoint-{at}")
    refused("AdaLoRA goes on with the scores of its ranks, and there is no .*elsewhere",
            lambda: trainer(tmp_path / "elsewhere", config(**phases)).train(
                resume_from_checkpoint=checkpoint))  # fmt: skip
    second = trainer(tmp_path / "cut", config(**phases))
    second.train(resume_from_checkpoint=checkpoint)

    saved = ranks(tmp_path / "cut" / f"checkpoint-{at}")
    assert saved == [4] * MODULES, "a checkpoint keeps the ranks that may grow back"
    for model, name in ((whole.model, "a"), (second.model, "b")):
        model.save_pretrained(tmp_path / name)
    assert_same(*(load_file(tmp_path / n / "adapter_model.safetensors") for n in "ab"))


@pytest.mark.more
def test_a_part_without_a_gradient_does_not_stop_it(tmp_path):
    run = trainer(tmp_path, stack())
    idle = nn.Parameter(torch.ones(3))
    run.model.get_base_model().model.layers[0].self_attn.lmam.lora_w_a["idle_default"] = idle
    run.train()
    assert idle.grad is None
    run.model.save_pretrained(tmp_path / "adapter")
    assert sum(ranks(tmp_path / "adapter")) == 2 * MODULES


@pytest.mark.more
def test_models_and_ranks_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ValueError, match="this model has no AdaLoraConfig part that trains"):
        trainer(tmp_path, lora("llama", task_type="CAUSAL_LM")).train()
    with pytest.raises(ValueError, match="target_r=4 is not below init_r=4, so there is nothing"):
        trainer(tmp_path, adalora(target_r=4)).train()


def test_no_other_part_of_a_stack_has_a_tuner_that_changes_the_models_forward():
    """A stack adds AdaLoRA's regulariser itself, and calls no tuner's forward."""
    changing = {
        kind.value
        for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if issubclass(tuner, BaseTuner) and tuner.forward is not BaseTuner.forward
    }
    assert changing - {*UNSTACKABLE, STACK} == {"ADALORA"}
