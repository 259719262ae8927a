"""PEFT's own decoder tests, pointed at LmamConfig, BottleneckConfig and LoradaConfig.

PEFT's tests are in its sdist, not in its wheel: the sdist of the installed version is fetched once
into a cache folder and unpacked outside this repository. ``peft_suite/`` holds what is ours.
"""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import peft
import pytest
import torch
import transformers

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
LLAMA_LIKE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
# PEFT's tests tell architectures apart by these names.
MODELS = {
    "LlamaForCausalLM": ("Llama", LLAMA_LIKE),
    "GPT2LMHeadModel": ("GPT2", {**SIZES, "bos_token_id": 1, "eos_token_id": 2}),
    "MistralForCausalLM": ("Mistral", {**LLAMA_LIKE, "sliding_window": 64}),
    "Qwen2ForCausalLM": ("Qwen2", LLAMA_LIKE),
    "Qwen3ForCausalLM": ("Qwen3", {**LLAMA_LIKE, "head_dim": 8}),
    "OPTForCausalLM": ("OPT", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
}

# Tests of PEFT's other methods on models and data from the hub, by name. None of them meets a
# config of ours, so how they end says nothing about us.
EXCUSED = {
    # prompt learning
    "test_prefix_tuning_gemma4_raises_if_all_layers_skipped",
    "test_prefix_tuning_gemma4_warns_if_some_layers_skipped",
    "test_prefix_tuning_gemma4_works",
    "test_prefix_tuning_mistral",
    "test_prefix_tuning_offsets_position_ids_in_forward",
    "test_prefix_tuning_qwen2_with_grouped_query_attention",
    "test_prefix_tuning_qwen3_with_grouped_query_attention",
    "test_prompt_learning_with_gradient_checkpointing",
    "test_prompt_tuning_prepare_inputs_for_generation_4d_attention_mask",
    "test_prompt_tuning_text_tokenizer_kwargs",
    "test_prompt_tuning_trust_remote_code",
    # plain LoRA and AdaLoRA
    "test_generate_adalora_no_dropout",
    "test_lora_embed_scale_is_applied",
    "test_lora_embed_scale_is_applied_mixed_batch",
    "test_lora_layer_replication",
    "test_merge_and_unload_fixes_tie_word_embeddings_config",
    "test_save_pretrained_targeting_lora_to_embedding_layer",
}


def sdist() -> Path:
    """The sdist of the installed peft, from the cache or from PyPI; skips where there is none."""
    root = os.environ.get("LORADA_CACHE") or Path.home() / ".cache" / "lorada"
    cache = Path(root) / "peft-sdist"
    archive = cache / f"peft-{peft.__version__}.tar.gz"
    if archive.is_file():
        return archive
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    download += ["--retries", "1", "--timeout", "15"]  # no network is a skip, not a wait
    done = subprocess.run(
        [*download, "--dest", str(cache), f"peft=={peft.__version__}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if not archive.is_file():
        reason = (done.stderr.strip().splitlines() or ["pip downloaded another file"])[-1]
        pytest.skip(f"no sdist of peft {peft.__version__}: {reason}")
    return archive


def write_models(folder: Path, names: list[str]) -> None:
    for name in names:
        torch.manual_seed(0)
        config_name, sizes = MODELS[name]
        config = getattr(transformers, f"{config_name}Config")(**sizes)
        getattr(transformers, name)(config).save_pretrained(folder / name)


def run_suite(folder: Path, names: list[str]) -> dict[str, list[tuple[str, str, str]]]:
    """(test, full id, reason) of PEFT's tests by outcome."""
    with tarfile.open(sdist()) as archive:
        archive.extractall(folder, filter="data")
    root = folder / f"peft-{peft.__version__}"
    (root / "tests" / "__init__.py").touch()  # its files import each other as a package
    write_models(folder / "models", names)
    command = [sys.executable, "-m", "pytest", "-p", "lorada_plugin", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, f"--rootdir={root}", "-q", "--tb=short", "-W", "ignore"]
    command += ["--junitxml=report.xml", "tests/test_decoder_models.py"]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "LORADA_SUITE_MODELS": str(folder / "models"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE / "peft_suite"),
    }
    done = subprocess.run(
        [*command, str(HERE / "peft_suite" / "more_decoder_tests.py")],
        cwd=root, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    return read_report(root / "report.xml")


def read_report(path: Path) -> dict[str, list[tuple[str, str, str]]]:
    outcomes: dict[str, list[tuple[str, str, str]]] = {"passed": [], "skipped": [], "failed": []}
    for case in ElementTree.parse(path).iter("testcase"):
        full = case.get("name")
        test = full.split("[")[0]
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = "passed" if not bad else "skipped" if bad[0].tag == "skipped" else "failed"
        outcomes[outcome].append((test, full, (bad[0].get("message") or "") if bad else ""))
    return outcomes


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["LlamaForCausalLM", "GPT2LMHeadModel"], id="llama-gpt2"),
        pytest.param(list(MODELS), id="all", marks=pytest.mark.slow),
    ],
)
def test_peft_decoder_tests_pass_with_our_configs(names, tmp_path):
    outcomes = run_suite(tmp_path, names)

    excused = [case for case in outcomes["failed"] if case[0] in EXCUSED]
    failed = [f"{full}: {why}" for test, full, why in outcomes["failed"] if test not in EXCUSED]
    skips = Counter(reason.splitlines()[0][:90] for _, _, reason in outcomes["skipped"])
    print(
        f"PEFT {peft.__version__} on {', '.join(names)}: {len(outcomes['passed'])} passed, "
        f"{len(outcomes['skipped'])} skipped, {len(excused)} excused, {len(failed)} failed"
    )
    for reason, count in skips.most_common():
        print(f"  skipped {count}: {reason}")
    assert not failed, "\n".join(failed)
    # A suite that stopped meeting our configs would pass as well.
    ours = [full for _, full, _ in outcomes["passed"] if "LoradaConfig" in full]
    assert len(ours) > 25 * len(names)
    merges = [test for test, full, _ in outcomes["passed"] if "merge" in full]
    assert len(merges) >= 4 * len(names)
