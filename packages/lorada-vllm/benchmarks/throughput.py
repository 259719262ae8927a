"""Tokens per second of vLLM with and without the map, side by side.

Models of SmolLM2-135M's shape, with random weights, in one process:

    base       the base alone
    lora       LoRA, merged
    no map     LoRaDA-LA without its map: LoRA, merged, and the bottleneck; twice
    map        LoRaDA-LA

They answer the same prompts step by step in turn: one token of each sequence in one model, then in
the next, round after round. So whatever else the machine does meets all of them. "no map" stands
there twice; what its second time takes is the noise. A ratio is made within each round; its median
is printed with the smallest and the largest. Ratios of processor time do not count the time in
which other programs ran; they mean what they say with one thread (``--threads 1``), as more of them
wait for each other.

    python packages/lorada-vllm/benchmarks/throughput.py --output FILE.json
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from lorada_vllm.versions import installed
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from lorada import BottleneckConfig, LmamConfig, LoradaConfig
from lorada.inference.exported_config import mark

# The shape of SmolLM2-135M.
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
MAP = LmamConfig(rank=2, length=128)
LORA = LoraConfig(r=1, lora_alpha=2, target_modules=["o_proj", "down_proj"])
BOTTLENECK = BottleneckConfig(rank=18, scale=4.0)
STACKS = {
    "base": [],
    "lora": [LORA],
    "no map": [LORA, BOTTLENECK],
    "no map again": [LORA, BOTTLENECK],
    "map": [MAP, LORA, BOTTLENECK],
}
# Prompt and new tokens: every step under the map of 128 tokens, and a prompt longer than it.
LOADS = {"short": (32, 48), "long": (256, 48)}


def write(folder: Path, parts: list[Any], layers: int) -> Path:
    """An exported folder with random weights."""
    set_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": layers}))
    if parts:
        model = get_peft_model(model, LoradaConfig(parts=parts))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        model = model.merge_weights()
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, save_embedding_layers=False)
        model.unload().save_pretrained(folder)
        mark(folder)
    else:
        model.save_pretrained(folder)
    words = {str(i): i for i in range(SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="0").save_pretrained(folder)
    return folder


def engine(folder: Path, dtype: str, batch: int, eager: bool) -> Any:
    """VLLM with one of the models."""
    from vllm import LLM

    return LLM(
        model=str(folder),
        dtype=dtype,
        enforce_eager=eager,
        max_model_len=512,
        max_num_seqs=batch,
        enable_prefix_caching=False,
        seed=0,
    )


def seconds(
    engines: dict[str, Any], prompts: list[list[int]], new: int
) -> dict[str, tuple[float, float]]:
    """How long one batch takes each model, on the clock and of processor time."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    for llm in engines.values():
        for number, prompt in enumerate(prompts):
            llm.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)
    took = dict.fromkeys(engines, (0.0, 0.0))
    names, step = list(engines), 0
    while any(llm.llm_engine.has_unfinished_requests() for llm in engines.values()):
        first = step % len(names)
        for name in names[first:] + names[:first]:
            start, start_busy = time.perf_counter(), time.process_time()
            answers = engines[name].llm_engine.step()
            clock, busy = time.perf_counter() - start, time.process_time() - start_busy
            assert all(len(one.outputs[0].token_ids) == new for one in answers if one.finished)
            took[name] = took[name][0] + clock, took[name][1] + busy
        step += 1
    return took


def measure(engines: dict[str, Any], batch: int, load: str, rounds: int) -> dict[str, Any]:
    """Tokens per second of each model by round."""
    length, new = LOADS[load]
    generator = torch.Generator().manual_seed(batch)
    took: dict[str, list[float]] = {name: [] for name in engines}
    busy: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 1):
        shape = (batch, length)
        prompts = torch.randint(1, SHAPE["vocab_size"], shape, generator=generator).tolist()
        spent = seconds(engines, prompts, new)
        for name in engines if turn else ():  # the first round warms up
            took[name].append(spent[name][0])
            busy[name].append(spent[name][1])
    rates = {name: [batch * new / t for t in times] for name, times in took.items()}
    ratios = {
        f"{name} / {other}, {kind}": [b / a for a, b in zip(times[name], times[other], strict=True)]
        for kind, times in (("clock", took), ("processor", busy))
        for name, other in (("map", "no map"), ("map", "base"), ("no map again", "no map"))
        if {name, other} <= engines.keys()
    }
    return {"batch": batch, "load": load, "tokens_per_s": rates, "ratios": ratios}


def line(found: dict[str, Any]) -> str:
    """One measurement as text."""
    rates = [f"{name} {statistics.median(r):.1f}" for name, r in found["tokens_per_s"].items()]
    ratios = [
        f"{name} {statistics.median(r):.3f} [{min(r):.3f}, {max(r):.3f}]"
        for name, r in found["ratios"].items()
    ]
    return f"batch {found['batch']:>2} {found['load']:>5}: {'; '.join([*rates, *ratios])}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--loads", nargs="+", default=list(LOADS), choices=list(LOADS))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--models", nargs="+", default=list(STACKS), choices=list(STACKS))
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--threads", type=int, help="one per core, if left out")
    asked = parser.parse_args()
    if asked.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(asked.threads)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    with tempfile.TemporaryDirectory() as place:
        most = max(asked.batches)
        engines = {
            name: engine(
                write(Path(place) / name.replace(" ", "-"), parts, asked.layers),
                asked.dtype,
                most,
                asked.eager,
            )
            for name, parts in STACKS.items()
            if name in asked.models
        }
        found = []
        for load in asked.loads:
            for batch in asked.batches:
                found.append(measure(engines, batch, load, asked.rounds))
                print(line(found[-1]), flush=True)
    about = {
        "vllm": installed(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "cores": os.cpu_count(),
        "threads": asked.threads or os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "dtype": asked.dtype,
        "compiled": not asked.eager,
        "rounds": asked.rounds,
        "found": found,
    }
    if asked.output is not None:
        asked.output.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
