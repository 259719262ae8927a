"""The life of a model with stacks: random operations, and after each what a fresh model computes.

The reference has no past: a new base, and the adapters that were placed on it in their order, with
the weights that were written down when they were made or trained.
"""

import copy
import functools
import pickle
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import TINY, assert_close
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from peft import (
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from stacks import OUTPUT, QUERY, VALUE, bottleneck, ia3, lmam, logits, lora
from torch import Tensor, nn

from lorada import LoradaConfig, PrefixConfig, QuantaConfig, SoraConfig, as_stack, bake
from lorada.tuners.stack.nested_layers import wraps

SORA = {"rank": 2, "target_modules": ["q_proj", "down_proj"]}
HEAD = {"modules_to_save": ["lm_head"]}
STACKS = {
    "lora and map": lambda: LoradaConfig(parts=[lora("llama"), lmam()]),
    "lora and ia3": lambda: LoradaConfig(parts=[lora("llama", QUERY), ia3("llama", QUERY, VALUE)]),
    "sora and dora": lambda: LoradaConfig(
        parts=[SoraConfig(**SORA), lora("llama", QUERY, OUTPUT, use_dora=True)]
    ),
    "norms": lambda: LoradaConfig(
        parts=[LNTuningConfig(target_modules=["input_layernorm"]), bottleneck()]
    ),
    "head and map": lambda: LoradaConfig(parts=[lmam(align="end"), lora("llama", VALUE)], **HEAD),
    "head": lambda: LoradaConfig(parts=[QuantaConfig(target_modules=["q_proj"])], **HEAD),
    "shared": lambda: LoradaConfig(parts=[VeraConfig(r=2, target_modules=["o_proj"]), lmam()]),
    "prefix": lambda: LoradaConfig(parts=[PrefixConfig(length=2), lora("llama", VALUE)]),
}
PLAIN = {
    "plain lora": lambda: LoraConfig(r=2, target_modules=["q_proj", "down_proj"]),
    "plain map": lmam,
    "plain norms": lambda: LNTuningConfig(target_modules=["input_layernorm"]),
    "refused": lambda: LoradaConfig(parts=[lora("llama"), lmam(heads=3)], **HEAD),
}
NAMES = ("a", "b", "c", "d")
IDS = torch.arange(5, 29).view(3, 8)
MASK = torch.ones(3, 8, dtype=torch.long)
MASK[1, 5:] = 0
BATCH = {"input_ids": IDS, "attention_mask": MASK}
IMPLEMENTATIONS = st.sampled_from(["eager", "sdpa"])


@dataclass
class Adapter:
    """What is written down of an adapter; one without weights was deleted."""

    config: PeftConfig
    weights: dict[str, Tensor] | None = None

    def has(self, *kinds: str) -> bool:
        """Whether it has a part of one of these types, or copies of modules (``HEAD``)."""
        own = {part.peft_type for part in as_stack(self.config).parts}
        return bool(own & set(kinds)) or ("HEAD" in kinds and bool(self.config.modules_to_save))

    @property
    def attached(self) -> bool:
        return not all(wraps(part) for part in as_stack(self.config).parts)

    @property
    def ends(self) -> bool:
        """Whether it needs the end of the text, which decoding step by step does not have."""
        return any(getattr(part, "align", "") == "end" for part in as_stack(self.config).parts)


class Life(RuleBasedStateMachine):
    """A model that is used, and what it must compute."""

    @initialize(kind=st.sampled_from(sorted(STACKS)), seed=st.integers(0, 99))
    def born(self, kind, seed):
        self.folder = Path(tempfile.mkdtemp())
        base = TINY["llama"](attn_implementation="eager")
        self.base = {key: value.clone() for key, value in base.state_dict().items()}
        self.begin(base, kind, seed)

    def teardown(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    # The reference.

    def new_base(self, implementation: str = "eager") -> nn.Module:
        base = TINY["llama"](attn_implementation=implementation)
        base.load_state_dict(self.base)
        return base

    def expected(self) -> nn.Module:
        """A new model with what was placed, in its order; the weights of what is there are set."""
        model = None
        for name, adapter in self.placed:
            config = as_stack(copy.deepcopy(adapter.config))
            if model is None:
                model = get_peft_model(self.new_base(), config, name)
            else:
                model.add_adapter(name, config)
            if adapter.weights is not None:
                set_peft_model_state_dict(model, adapter.weights, adapter_name=name)
        model.base_model.set_adapter(self.active)
        return model.eval()

    @property
    def here(self) -> dict[str, Adapter]:
        return {name: adapter for name, adapter in self.placed if adapter.weights is not None}

    @property
    def attached(self) -> bool:
        return any(self.here[name].attached for name in self.active)

    @invariant()
    def computes_what_a_fresh_model_does(self):
        assert list(self.model.peft_config) == list(self.here)
        assert list(self.model.base_model.active_adapters) == self.active
        assert_close(logits(self.model, BATCH), logits(self.expected(), BATCH))

    # Beginning and end of adapters.

    def begin(self, base: nn.Module, kind: str, seed: int) -> None:
        config = STACKS[kind]()
        self.model = get_peft_model(base, copy.deepcopy(config), "a").eval()
        self.placed, self.active = [("a", Adapter(config, self.draw("a", seed)))], ["a"]

    def draw(self, name: str, seed: int) -> dict[str, Tensor]:
        """New weights of an adapter, which it gets."""
        generator = torch.Generator().manual_seed(seed)
        found = get_peft_model_state_dict(self.model, adapter_name=name)
        drawn = {key: value + 0.3 * torch.randn(value.shape, generator=generator)
                 if value.is_floating_point() else value.clone()
                 for key, value in sorted(found.items())}  # fmt: skip
        set_peft_model_state_dict(self.model, drawn, adapter_name=name)
        return drawn

    def own_name(self, name: str) -> str:
        """Names of deleted adapters are used again; in the reference each has one of its own."""
        assume(name not in self.here and len(self.here) < 4 and len(self.placed) < 8)
        self.placed = [(f"gone_{i}", old) if key == name else (key, old)
                       for i, (key, old) in enumerate(self.placed)]  # fmt: skip
        return name

    @rule(name=st.sampled_from(NAMES), kind=st.sampled_from(sorted(STACKS | PLAIN)),
          seed=st.integers(0, 99))  # fmt: skip
    def add(self, name, kind, seed):
        name, config = self.own_name(name), (STACKS | PLAIN)[kind]()
        if self.added(lambda: self.model.add_adapter(name, copy.deepcopy(config))):
            assert kind != "refused"
            self.placed.append((name, Adapter(config, self.draw(name, seed))))

    def added(self, add) -> bool:
        """Whether an adapter is there now; if it was refused, nothing else may have changed."""
        said = "heads=3|in another order|ignore the other parts|has had an adapter with such a part"
        try:
            add()
        except ValueError as error:
            if not re.search(said, str(error)):
                raise
            return False
        self.model.eval()
        return True

    @precondition(lambda self: len(self.here) > 1)
    @rule(data=st.data())
    def delete(self, data):
        name = data.draw(st.sampled_from(sorted(self.here)))
        self.model.delete_adapter(name)
        self.placed = [(key, Adapter(old.config) if key == name else old)
                       for key, old in self.placed]  # fmt: skip
        if name in self.active:
            left = [key for key in self.active if key != name]
            self.active = left or sorted(self.here)[:1]

    @rule(data=st.data())
    def activate(self, data):
        names = data.draw(st.lists(st.sampled_from(sorted(self.here)), min_size=1, unique=True))
        for alone in ("HEAD", "LN_TUNING"):  # PEFT takes one of these at a time
            assume(sum(self.here[name].has(alone) for name in names) < 2)
        (self.model if len(names) == 1 else self.model.base_model).set_adapter(
            names[0] if len(names) == 1 else names
        )
        self.active = names

    # Saving and loading.

    def saved(self, name: str) -> Path:
        self.model.save_pretrained(self.folder)
        return self.folder if name == "default" else self.folder / name

    @rule(data=st.data(), name=st.sampled_from(NAMES), low=st.booleans(), trains=st.booleans())
    def load(self, data, name, low, trains):
        source = data.draw(st.sampled_from(sorted(self.here)))
        adapter, name = self.here[source], self.own_name(name)
        path, options = str(self.saved(source)), {"low_cpu_mem_usage": low, "is_trainable": trains}
        if self.added(lambda: self.model.load_adapter(path, name, **options)):
            self.placed.append((name, Adapter(adapter.config, dict(adapter.weights))))

    @rule(data=st.data(), implementation=IMPLEMENTATIONS, low=st.booleans(), trains=st.booleans())
    def reload(self, data, implementation, low, trains):
        names = data.draw(st.permutations(sorted(self.here)))
        paths = [self.saved(name) for name in names]
        first = as_stack(paths[0])
        first.inference_mode = not trains
        model = PeftModel.from_pretrained(
            self.new_base(implementation), str(paths[0]), names[0], config=first,
            is_trainable=trains, low_cpu_mem_usage=low,
        )  # fmt: skip
        placed = [(names[0], self.here[names[0]])]
        for name, path in zip(names[1:], paths[1:], strict=True):
            load = functools.partial(model.load_adapter, str(path), name, low_cpu_mem_usage=low)
            if self.added(load):
                placed.append((name, self.here[name]))
        self.model, self.placed, self.active = model.eval(), placed, [names[0]]

    # Use.

    @rule()
    def bake(self):
        bake(self.model)

    @rule(implementation=IMPLEMENTATIONS)
    def attend(self, implementation):
        self.model.get_base_model().set_attn_implementation(implementation)

    @rule(how=st.sampled_from([copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]))
    def copied(self, how):
        self.model = how(self.model)

    @rule()
    def disable(self):
        with self.model.disable_adapter():
            assert_close(logits(self.model, BATCH), logits(self.new_base(), BATCH))

    @rule()
    def train(self):
        trained = [p for p in self.model.parameters() if p.requires_grad]
        assume(trained)
        self.model.train()(**BATCH, labels=IDS).loss.backward()
        torch.optim.SGD(trained, lr=1e-2).step()
        self.model.eval().zero_grad()
        for name in self.active:
            state = get_peft_model_state_dict(self.model, adapter_name=name)
            self.here[name].weights.update({key: p.clone() for key, p in state.items()})

    @precondition(lambda self: not any(self.here[name].ends for name in self.active))
    @rule(options=st.sampled_from([{}, {"cache_implementation": "static"}, {"use_cache": False}]))
    def generate(self, options):
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
        found = self.model.generate(
            input_ids=IDS.clone(), attention_mask=torch.ones_like(IDS), max_new_tokens=3,
            output_scores=True, return_dict_in_generate=True, **options,
        )  # fmt: skip
        for step, scores in enumerate(found.scores):
            read = {"input_ids": found.sequences[:, : IDS.shape[1] + step]}
            assert_close(scores, logits(self.expected(), read, use_cache=False)[:, -1])

    # Merging.

    @rule(way=st.sampled_from(["unmerge", "activate", "disable"]))
    def merge_and_back(self, way):
        if self.attached:
            with pytest.raises(ValueError, match="cannot be merged"):
                self.model.merge_adapter()
            return
        self.model.merge_adapter()
        self.computes_what_a_fresh_model_does()
        if way == "unmerge":
            self.model.unmerge_adapter()
        elif way == "activate":
            self.model.base_model.set_adapter(list(self.active))
        else:
            self.disable()

    def is_base(self, model: nn.Module) -> nn.Module:
        """A model is the base from now on."""
        self.base = {key: model.state_dict()[key].clone() for key in self.base}
        return model

    @rule(kind=st.sampled_from(sorted(STACKS)), seed=st.integers(0, 99))
    def merge_and_unload(self, kind, seed):
        if self.attached:
            with pytest.raises(ValueError, match="cannot be merged"):
                self.model.merge_and_unload()
            return
        expected = logits(self.expected(), BATCH)
        merged = self.model.merge_and_unload()
        assert_close(logits(merged, BATCH), expected)
        self.begin(self.is_base(merged), kind, seed)

    @rule(kind=st.sampled_from(sorted(STACKS)), seed=st.integers(0, 99))
    def merge_weights(self, kind, seed):
        if len(self.active) > 1:
            with pytest.raises(ValueError, match="merges one adapter"):
                self.model.base_model.merge_weights()
            return
        expected, adapter = logits(self.expected(), BATCH), self.here[self.active[0]]
        merged = self.model.base_model.merge_weights()
        assert_close(logits(merged, BATCH), expected)
        if not isinstance(merged, PeftModel):
            self.begin(self.is_base(merged), kind, seed)
            return
        self.is_base(merged.get_base_model())
        config, keys = merged.peft_config["default"], get_peft_model_state_dict(merged)
        if adapter.has("HEAD") or len(config.parts) < len(as_stack(adapter.config).parts):
            with pytest.raises(ValueError, match="has merged what it can"):
                merged.save_pretrained(self.folder)
        # As that error says; adapters that are added from now on are for the merged base too.
        config.base_model_name_or_path = merged.get_base_model().name_or_path = "merged"
        rest = Adapter(copy.deepcopy(config), {key: adapter.weights[key] for key in keys})
        self.model, self.placed, self.active = merged, [("default", rest)], ["default"]

    @rule(kind=st.sampled_from(sorted(STACKS)), seed=st.integers(0, 99))
    def unload(self, kind, seed):
        base = self.model.unload()
        assert_close(logits(base, BATCH), logits(self.expected().unload(), BATCH))
        assert base.state_dict().keys() == self.base.keys()
        self.begin(self.is_base(base), kind, seed)  # PEFT leaves it a trained head


def live(lives: int, steps: int) -> None:
    options = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
    run_state_machine_as_test(
        Life, settings=settings(max_examples=lives, stateful_step_count=steps, **options)
    )


@pytest.mark.more
@pytest.mark.fp64
@pytest.mark.more
def test_a_model_computes_what_a_fresh_one_does_whatever_was_done_to_it():
    live(lives=25, steps=15)


@pytest.mark.fp64
@pytest.mark.slow
def test_it_does_over_thousands_of_steps():
    live(lives=300, steps=25)
