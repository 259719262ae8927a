"""Writes ``tests/saved_before``: adapters, runs, recipes and results as this version saves them.

``tests/test_saved_before.py`` loads them and compares what they compute with what they computed
when they were written. The files there were written once, by the code of commit 765d73f (lorada
0.1.0, torch 2.13.0, transformers 5.24.0, peft 0.21.2), before its modules were moved into folders.
They are not written again: files of a later version belong into a folder beside them.

    python tests/write_saved_before.py FOLDER

Everything is trained and saved below ``PLACE``, so that is the path in the recipes; the test puts
its own there. The weights are fp32 and expected numbers are computed from them in fp64.
"""

import json
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from io import StringIO
from pathlib import Path

import torch
from double import in_double
from folders import ROWS, rows_file
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from stacks import randomise
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

import lorada
from lorada import (
    METHODS,
    TASKS,
    BottleneckConfig,
    LamdaConfig,
    LmamConfig,
    LoradaConfig,
    OmoeConfig,
    PrefixConfig,
    QuantaConfig,
    SoraConfig,
    cli,
)

PLACE = Path("/tmp/lorada-before")
LETTERS = "0123456789+=Ġabcdefghijklmnopqrstuvwxyz"  # Ġ is how byte-level tokens write a space
IDS = torch.tensor([[5, 9, 14, 20, 7, 31, 12, 3], [8, 3, 25, 30, 11, 0, 0, 0]])
MASK = (IDS != 0).long()
EVERY = 3  # every third logit is kept

QV = ["q_proj", "v_proj"]
MAP = {"rank": 2, "length": 6, "inverse_scale": 2.0}
ADAPTERS = {
    "lmam": LmamConfig(**MAP),
    "lmam_shared_heads_at_the_end": LmamConfig(**MAP, heads=2, align="end"),
    "lmam_no_negative": LmamConfig(**MAP, ablation="no_negative"),
    "lmam_softmax": LmamConfig(**MAP, ablation="softmax"),
    "lmam_full_rank": LmamConfig(length=6, ablation="full_rank"),
    "lmam_no_position": LmamConfig(**MAP, ablation="no_position"),
    "bottleneck": BottleneckConfig(rank=2, scale=2.0),
    "bottleneck_houlsby": BottleneckConfig(rank=2, placement="houlsby", activation="relu"),
    "bottleneck_parallel": BottleneckConfig(rank=2, placement="parallel"),
    "prefix": PrefixConfig(length=3),
    "prefix_network": PrefixConfig(length=3, projection=4),
    "quanta": QuantaConfig(dims=[4, 2, 2], target_modules=["q_proj"]),
    "lamda": LamdaConfig(rank=2, target_modules=QV),
    "omoe": OmoeConfig(rank=2, target_modules=QV),
    "sora": SoraConfig(rank=2, target_modules=QV),
    "stack_lorada_la": LoradaConfig(
        parts=[LmamConfig(**MAP), LoraConfig(r=2, target_modules=QV), BottleneckConfig(rank=2)]
    ),
    "stack_lorada_q": LoradaConfig(
        parts=[LmamConfig(**MAP), QuantaConfig(dims=[4, 2, 2], target_modules=["q_proj"])]
    ),
    "stack_mam": LoradaConfig(parts=[PrefixConfig(length=3), BottleneckConfig(rank=2)]),
}

SETTINGS = [
    "training.per_device_train_batch_size=4", "training.report_to=[]", "max_length=32",
    "logging_steps=2", "max_steps=4", "save_strategy=no", "training.disable_tqdm=true",
    "learning_rate=0.05", "max_grad_norm=0", "training.seed=3",
]  # fmt: skip
SMALL_LA = ["lmam.length=6", "lora.r=2", "bottleneck.rank=2"]
CLASSES = [
    {"text": row["prompt"], "label": "even" if i % 2 else "odd"} for i, row in enumerate(ROWS)
]
# Run -> its model, its rows, its method, and settings beside SETTINGS.
RUNS = {
    "causal": ("llama", "rows", "lorada_la", SMALL_LA),
    "classes": ("bert", "classes", "lora+lmam", ["lmam.length=6", "lora.r=2"]),
    "seq2seq": ("bart", "rows", "lorada_a", ["lmam.length=6", "lmam.heads=2", "lmam.rank=2",
                                             "bottleneck.rank=2"]),
    "part_of_the_base": ("bert", "classes", "bitfit", []),
}  # fmt: skip
LOADERS = {
    "llama": AutoModelForCausalLM, "bart": AutoModelForSeq2SeqLM,
    "bert": AutoModelForSequenceClassification,
}  # fmt: skip
MINE = "model: smollm2-135m\ndata: rows.jsonl\noutput: runs/mine\n"
# Recipes as users write them.
RECIPES = {
    "flat": f"{MINE}method: lorada_la\nlearning_rate: 1e-3\nmax_steps: 20\nlmam.rank: 4\n",
    "sections": f"{MINE}method: lorada_a\nlmam:\n  rank: 3\n  inverse_scale: 255\n"
    "bottleneck: {rank: 16, scale: 2}\ntraining:\n  learning_rate: 3e-4\n  seed: 2\n",
    "as_saved": f"{MINE}method: lora+lmam\nparts:\n  lmam: {{length: 256}}\n  lora: {{r: 4}}\n"
    "training: {num_train_epochs: 2.0, warmup_steps: 0.06}\n",
    "classes": "method: lmam\nmodel: minilm-l6\ntask: mrpc, rte\noutput: runs/mine\n"
    "data_dir: rows\neval_rows: 50\ntrain_rows: 100\ndev_rows: 8\nmax_length: 96\n",
    "commonsense": "method: lorada_q\nmodel: some/llama\ntask: boolq\noutput: runs/mine\n"
    "protocol: likelihood\ntrain_on: commonsense_170k\nquanta: {dims: 16-8-8-4}\n"
    "metric_for_best_model: accuracy\n",
    "translation": "method: lorada_a\nmodel: some/mbart\ntask: wmt16_en_ro\noutput: runs/mine\n"
    "languages: [en_XX, ro_RO]\nmax_target_length: 150\nlmam: {stacks: [encoder]}\n",
    "long": "method: longlora+lmam\nmodel: some/llama\ntask: proof_pile\noutput: runs/mine\n"
    "eval_lengths: [2048, 4096]\neval_windows: 4\nrope_factor: 2\nlmam: {align: end}\n"
    "dtype: bfloat16\n",
    "other_fields": f"{MINE}method: full\npacking: true\nloss_on: all\nmax_new_tokens: 8\n"
    "eval_batch_size: 4\neval_data: held.jsonl\nfrom_adapter: saved\ntrain_head: false\n",
}
PARTS = {
    "lmam": LmamConfig(), "bottleneck": BottleneckConfig(), "prefix": PrefixConfig(),
    "quanta": QuantaConfig(), "omoe": OmoeConfig(), "sora": SoraConfig(), "lamda": LamdaConfig(),
}  # fmt: skip
STORED = [f"table5/local/{row}/mrpc/seed{seed}.json" for row in ("lora", "adapter_ffn")
          for seed in (1, 2)]  # fmt: skip


def command(*words: object) -> str:
    """What a command of lorada prints."""
    sys.argv = ["lorada", *map(str, words)]
    with redirect_stdout(StringIO()) as out:
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{words}: {end.code}") from end
    return out.getvalue()


def write_models() -> None:
    """Tiny LLaMA, BERT and BART, with one tokenizer of single letters."""
    vocab = {token: i for i, token in enumerate(["<p>", "<s>", "<e>", *LETTERS])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<p>", bos_token="<s>", eos_token="<e>"
    )
    sizes = {
        "vocab_size": len(vocab), "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 40,
        "pad_token_id": 0, "initializer_range": 0.2,
    }  # fmt: skip
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    bart = {
        "vocab_size": len(vocab), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24, "max_position_embeddings": 40, "dropout": 0.0, "init_std": 0.2,
        "pad_token_id": 0, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
    }  # fmt: skip
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for name, model, config in (
        ("llama", LlamaForCausalLM, LlamaConfig(**sizes, **ends, num_key_value_heads=2)),
        ("bert", BertForSequenceClassification, BertConfig(**sizes, **no_dropout)),
        ("bart", BartForConditionalGeneration, BartConfig(**bart, **ends)),
    ):
        set_seed(0)
        model(config).save_pretrained(PLACE / "models" / name)
        tokenizer.save_pretrained(PLACE / "models" / name)


def base(name: str, **options: object) -> torch.nn.Module:
    return LOADERS[name].from_pretrained(PLACE / "models" / name, **options)


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Some logits of a model in fp64, on IDS."""
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS[:, :4]
    with torch.no_grad():
        found = model.double().eval()(**inputs).logits
    return found[..., ::EVERY].contiguous() if found.dim() == 3 else found


def write_adapters(expected: dict[str, torch.Tensor]) -> None:
    for name, config in ADAPTERS.items():
        set_seed(0)
        model = get_peft_model(base("llama"), config)
        randomise(model)
        folder = PLACE / "adapters" / name
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        with in_double():
            loaded = PeftModel.from_pretrained(base("llama"), folder)
            expected[f"adapters.{name}"] = logits(loaded)
    with in_double():
        expected["models.llama"] = logits(base("llama"))


def train(name: str, *more: object) -> Path:
    model, rows, method, settings = RUNS[name]
    run = PLACE / "runs" / name
    command(
        "train", "--method", method, "--model", PLACE / "models" / model, "--data",
        PLACE / f"{rows}.jsonl", "--output", run, *SETTINGS, *settings, *more,
    )  # fmt: skip
    (run / "loss.png").unlink(missing_ok=True)
    return run


def write_runs(expected: dict[str, torch.Tensor]) -> dict[str, dict]:
    """Write RUNS and, of the first, the exported folder; the scores of each run."""
    scores = {}
    for name, (model, rows, *_) in RUNS.items():
        run = train(name)
        with in_double():
            words = ("evaluate", run, "--data", PLACE / f"{rows}.jsonl", "--json")
            scores[name] = json.loads(command(*words))
        if (run / "adapter").is_dir():
            heads = {"num_labels": 2} if model == "bert" else {}
            with in_double():
                loaded = PeftModel.from_pretrained(base(model, **heads), run / "adapter")
                expected[f"runs.{name}"] = logits(loaded)
    target = PLACE / "exported"
    command("export", PLACE / "runs" / "causal", target)
    for path in target.iterdir():
        if path.name.startswith("tokenizer"):
            path.unlink()
    with in_double():
        expected["exported"] = logits(AutoModelForCausalLM.from_pretrained(target))
    return scores


def write_interrupted() -> None:
    """A run as a kill leaves it, and the weights and losses to which it would have come.

    Computed in fp64 throughout, as the test goes on with it in fp64.
    """
    small = ["lmam.length=6", "lora.r=2", "lora.target_modules=[q_proj]"]
    RUNS["interrupted"] = ("llama", "rows", "ist+lmam", small)
    with in_double():
        run = train("interrupted", "save_strategy=steps", "save_steps=2", "dtype=float64")
    after = PLACE / "interrupted_after"
    after.mkdir()
    for name in ("adapter/adapter_model.safetensors", "result.json"):
        (run / name).rename(after / Path(name).name)
    for name in ("adapter", "checkpoint-4"):
        shutil.rmtree(run / name)


def write_recipes() -> None:
    """RECIPES, and for each of our parts one that states all of its settings."""
    folder = PLACE / "recipes"
    folder.mkdir()
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    hidden = {field.name for field in fields(PeftConfig)} | {"lorada_version", "library", "usage"}
    hidden |= {"base_model_type"}  # which is worked out from the model
    for part, config in PARTS.items():
        settings = [field for field in fields(config) if field.init and field.name not in hidden]
        values = {field.name: getattr(config, field.name) for field in settings}
        lines = "".join(f"  {name}: {json.dumps(value)}\n" for name, value in values.items())
        method = {"bottleneck": "adapter_ffn"}.get(part, part)
        text = f"method: {method}\n{MINE}{part}:\n{lines}"
        (folder / f"every_setting_of_{part}.yaml").write_text(text)


def read_recipes() -> dict[str, dict]:
    from lorada.runs.recipe import load_recipe

    return {
        path.stem: load_recipe(str(path), [], {}).model_dump()
        for path in sorted((PLACE / "recipes").glob("*.yaml"))
    }


def main(target: Path) -> None:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    torch.set_num_threads(1)
    write_models()
    rows_file(PLACE / "rows.jsonl", ROWS[::3])
    rows_file(PLACE / "classes.jsonl", CLASSES[::5])
    expected: dict[str, torch.Tensor] = {}
    write_adapters(expected)
    scores = write_runs(expected)
    write_interrupted()
    write_recipes()
    for name in STORED:
        (PLACE / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).parents[1] / "docs" / "results" / name, PLACE / "results" / name)
    save_file(expected, PLACE / "expected.safetensors")
    said = {
        "version": lorada.__version__, "place": str(PLACE), "scores": scores,
        "recipes": read_recipes(), "methods": sorted(METHODS),
        "tasks": sorted(TASKS),
    }  # fmt: skip
    (PLACE / "expected.json").write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    shutil.copytree(PLACE, target, dirs_exist_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
