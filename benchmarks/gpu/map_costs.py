"""Part 4: what the map costs in a step and in a token, beside no map and the paper's own form."""

import copy
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from gpu.machine import SHAPE_1B, Machine, ratios, spread
from library.agreement import DisagreementError
from library.paper_attention import use_paper_attention
from library.timing import Action, time_in_turns
from peft import LoraConfig, PeftModel, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, LlamaForCausalLM

from lorada import LmamConfig, LoradaConfig

TITLE = "What the map costs"
ABOUT = (
    "Four layers of Llama-3.1-8B's shape (1B: of Llama-3.2-1B's), LoRA on query and value, a base "
    "in bf16 with torch's sdpa; the map has 128 tokens and rank 2. A step is a forward and a "
    "backward pass under autocast, a token is decoded behind a cache. The models take turns; the "
    "one without a map stands there twice, which shows noise. Kernels and attention's time are "
    "counted once by torch's profiler. The paper's form has no cache, so it has no tokens; where "
    "it fails, its column is empty."
)
HEADER = (
    "what", "without, ms", "with / without", "without / without", "the paper's / without",
    "kernels without, with, the paper's", "the map's time / attention's", "attention's share",
)  # fmt: skip
SECONDS = 240
ALONE = True
TURNS, LENGTH, NEW = 9, 128, 16
# Rows and tokens of a step or of a prompt, and whether they are padded.
STEPS = {
    "step 8 × 512": (8, 512, False),
    "step 8 × 512, padded": (8, 512, True),
    "step 8 × 2,048": (8, 2048, False),
    "1B, step 8 × 512": (8, 512, False),
}
TOKENS = {
    "token, batch 1": (1, 32, False),
    "token, batch 32": (32, 32, False),
    "token, batch 32, padded": (32, 32, True),
    "token past the map, batch 32, padded": (32, 256, True),
}
ATTENTION = ("flash", "fmha", "efficient_attention", "cudnn_sdpa", "scaled_dot_product")
OLD_CACHE = "past_key_values"
Models = dict[str, Any]


def cases(machine: Machine) -> list[str]:
    """Steps and tokens."""
    return machine.pick([*STEPS, *TOKENS], ["step 8 × 512, padded", "token, batch 32, padded"])


def measure(machine: Machine, case: str) -> dict[str, Any]:
    """Milliseconds and kernels of a case."""
    models = _models(machine, case)
    prepare = _step if case in STEPS else _tokens
    actions = {name: prepare(machine, model, case) for name, model in models.items()}
    failed = None
    if "paper" in models:
        _check(models, machine)
        failed = _failure(machine, actions["paper"])
    if failed is not None:
        del models["paper"], actions["paper"]
    turns = machine.pick(TURNS, 1)
    timed = {name: machine.timed(action) for name, action in actions.items()}
    timed["off_again"] = timed["off"]
    seconds, _ = time_in_turns(timed, turns)
    count = 1 if case in STEPS else _new(machine)
    row: dict[str, Any] = {
        "ms": {name: [1000 * s / count for s in column] for name, column in seconds.items()},
        "paper_failed": failed,
    }
    profiles = {name: _profile(machine, action) for name, action in actions.items()}
    row["kernels"] = {name: round(found[0] / count) for name, found in profiles.items()}
    row["attention_ms"] = profiles["off"][2] / count
    row["device_ms"] = {name: found[1] / count for name, found in profiles.items()}
    return row


def _failure(machine: Machine, action: Action) -> str | None:
    """How the paper's form fails, which makes all scores at once; None if it does not."""
    try:
        machine.timed(action)(0)
    except Exception as error:  # of any class: the other columns are to be measured
        return f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return None


def _models(machine: Machine, case: str) -> Models:
    """The same model with LoRA, with the map beside it, and with the map in the paper's form."""
    shape = SHAPE_1B if case.startswith("1B") else {}
    lora = LoraConfig(r=16, target_modules=["q_proj", "v_proj"])
    with_map = [lora, LmamConfig(rank=2, length=LENGTH, inverse_scale=1.0)]

    def made(parts: list[Any], change: Callable[[Any], Any] = lambda base: base) -> PeftModel:
        base = change(machine.llama(4, 1024, **{**shape, "max_position_embeddings": 8192}))
        own = get_peft_model(base, LoradaConfig(parts=copy.deepcopy(parts)))
        generator = torch.Generator().manual_seed(1)
        for name, weight in own.named_parameters():
            if "lmam" in name:  # so that the map is not zero
                noise = torch.randn(weight.shape, generator=generator)
                weight.data.add_(noise.to(weight.device, weight.dtype), alpha=0.1)
        return own.to(machine.device)

    models = {"off": made([lora]), "on": made(with_map)}
    if case in STEPS:
        models["paper"] = made(with_map, use_paper_attention)
    return models


@torch.no_grad()
def _check(models: Models, machine: Machine) -> None:
    """Check that both forms of the map compute the same on a short batch, but for rounding."""
    ids = torch.randint(3, 1024, (2, 64), device=machine.device)
    found = {name: model.eval()(input_ids=ids).logits.float() for name, model in models.items()}
    apart = float((found["on"] - found["paper"]).norm() / found["off"].norm())
    effect = float((found["on"] - found["off"]).norm() / found["off"].norm())
    if not apart <= 0.2 * effect:
        raise DisagreementError(
            f"the map and the paper's form differ by {apart:.2g} of the logits' size, where the "
            f"map itself moves them by {effect:.2g}"
        )


def _ids(machine: Machine, rows: int, tokens: int) -> Any:
    if machine.tiny:
        rows, tokens = min(rows, 2), min(tokens, 160)
    generator = torch.Generator().manual_seed(2)
    return torch.randint(3, 1024, (rows, tokens), generator=generator).to(machine.device)


def _step(machine: Machine, model: Any, case: str) -> Action:
    rows, tokens, padded = STEPS[case]
    ids = _ids(machine, rows, tokens)
    mask = None
    if padded:  # on the right, as the paper's form has it
        mask = torch.ones_like(ids)
        mask[::2, -(ids.shape[1] // 4) :] = 0

    def run(turn: int) -> None:
        model.train()
        with machine.autocast():
            # A few logits, so that the layers are what is measured.
            found = model(input_ids=ids, attention_mask=mask, logits_to_keep=8, use_cache=False)
        found.logits.float().mean().backward()

    return run


def _new(machine: Machine) -> int:
    return int(machine.pick(NEW, 2))


def _tokens(machine: Machine, model: Any, case: str) -> Action:
    rows, tokens, padded = TOKENS[case]
    ids = _ids(machine, rows, tokens)
    mask = None
    if padded:
        mask = torch.ones_like(ids)
        mask[::2, : tokens // 4] = 0
    model.eval()
    cache = DynamicCache(config=model.config)
    # transformers has renamed it.
    name = "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else OLD_CACHE
    kept = {name: cache, "use_cache": True}
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, **kept)

    def run(turn: int) -> None:
        seen, token = mask, ids[:, -1:]
        with torch.no_grad():
            for _ in range(_new(machine)):
                if seen is not None:
                    seen = torch.cat([seen, seen.new_ones(len(ids), 1)], 1)
                logits = model(input_ids=token, attention_mask=seen, **kept).logits
                token = logits[:, -1:].argmax(-1)
        cache.crop(-_new(machine))  # without what was written

    return run


def _profile(machine: Machine, action: Action) -> tuple[int, float, float]:
    """Kernels of an action, milliseconds of all of them, and of those of attention."""
    on_cpu = machine.device == "cpu"
    kinds = [ProfilerActivity.CPU] if on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    machine.wait()
    with profile(activities=kinds) as found:
        action(0)
        machine.wait()
    count, total, attention = 0, 0.0, 0.0
    for event in found.key_averages():
        spent = event.self_cpu_time_total if on_cpu else event.self_device_time_total
        if not spent or (not on_cpu and event.device_type == torch.autograd.DeviceType.CPU):
            continue  # an operation of the host, whose time is that of the kernels it launched
        count, total = count + event.count, total + spent / 1000
        if any(name in event.key.lower() for name in ATTENTION):
            attention += spent / 1000
    return count, total, attention


def lines(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each case."""
    found = []
    for name, row in rows.items():
        ms, device = row["ms"], row["device_ms"]
        added, attention = device["on"] - device["off"], row["attention_ms"]
        paper = ratios(ms["paper"], ms["off"]) if "paper" in ms else []
        found.append((
            name + (f" (the paper's form: {row['paper_failed']})" if row["paper_failed"] else ""),
            spread(ms["off"], 2),
            spread(ratios(ms["on"], ms["off"]), 3),
            spread(ratios(ms["off_again"], ms["off"]), 3),
            spread(paper, 3),
            ", ".join(f"{row['kernels'][side]:,}" for side in ("off", "on", "paper") if side in ms),
            f"{added / attention:.2f}" if attention else "–",
            f"{attention / device['off']:.2f}" if device["off"] else "–",
        ))  # fmt: skip
    return found
