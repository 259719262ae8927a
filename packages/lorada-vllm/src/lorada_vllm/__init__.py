"""A vLLM plugin that serves exported lorada stacks: map, LoRA and bottleneck together.

vLLM calls ``plugin.register`` in each of its processes, through the entry point
``vllm.general_plugins``. Then a folder that `lorada export` wrote is served as any other model:

    python -m vllm.entrypoints.openai.api_server --model DIR

In this order: ``folder`` reads DIR and refuses by name what cannot be served, ``models`` puts the
parts into vLLM's own model, ``step`` finds the tokens under the map in each step, and
``paged_map`` adds the map's term for them, with values from vLLM's paged cache.
"""
