"""Settings of vLLM for tests, before anything imports it."""

import os

import torch

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine runs in the test's process
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

torch.set_num_threads(1)
