"""vLLM in the test's process: one engine after another, and what it answers."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stacks import VOCABULARY
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.plugins import load_general_plugins

# Now, since tests read exported folders with transformers too, in this process.
load_general_plugins()


@contextmanager
def engine(folder: Path, **options: Any) -> Iterator[Any]:
    """A running engine."""
    usual = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}
    llm = LLM(model=str(folder), seed=0, max_logprobs=VOCABULARY, **{**usual, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def answers(llm: Any, prompts: list[list[int]], count: int) -> list[Any]:
    """The greedy continuation of each prompt, with the log probabilities of all tokens."""
    sampling = SamplingParams(temperature=0, max_tokens=count, logprobs=VOCABULARY, ignore_eos=True)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [answer.outputs[0] for answer in llm.generate(asked, sampling, use_tqdm=False)]
