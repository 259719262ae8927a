"""METHODS: the compared methods of the paper and two more variants of LoRA, as data.

A method is a list of parts with their settings, for each kind of model. A combination (LoRaDA-A,
LoRaDA-LA, MAM, ``NAME+lmam``) is a longer list. ``method.Method`` documents the fields of an entry;
``build.build_method`` makes a method ready for a model.
"""

from lorada.methods.method import (
    EVERY_FAMILY,
    EVERYTHING,
    RATE_RATIO,
    SHIFTED_ATTENTION,
    Method,
    PartsByModel,
    Settings,
    Unpublished,
)


def _autopeft(serial: int, parallel: int, prefix: int) -> dict[str, Settings]:
    return {
        # The equations have no dropout within an adapter.
        "bottleneck": {"placement": "pfeiffer", "rank": serial, "dropout": 0.0},
        "parallel_ffn": {"rank": parallel, "scale": 4.0, "dropout": 0.0},
        "prefix": {"length": prefix, "projection": 800},
    }


# Papers that several methods link to.
LORADA = "https://aclanthology.org/2025.findings-emnlp.676/"
UNIFIED = "https://arxiv.org/abs/2110.04366"  # He et al.
LLM_ADAPTERS = "https://arxiv.org/abs/2304.01933"

MAP = {"rank": 2, "length": 128}
LLM_MATRICES = {"target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]}
LLM_LORA = {"r": 32, "lora_alpha": 64, "lora_dropout": 0.05, **LLM_MATRICES}
ENCODER_LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1}
# s = α/r = 4 as printed by He et al. (their Table 5), with the dropout of their scripts.
FFN_LORA = {
    "r": 102, "lora_alpha": 408, "lora_dropout": 0.1, "target_modules": ["fc1", "fc2"],
}  # fmt: skip
FFN_ADAPTER = {"rank": 512, "scale": 4.0}
ENCODERS = ("roberta", "deberta")
QUERY_VALUE = {
    "llama": ["q_proj", "v_proj"],
    "roberta": ["query", "value"],
    "deberta": ["query_proj", "value_proj"],
    "bart": ["q_proj", "v_proj"],
}
LORA: dict[str, Settings] = {
    "llama": LLM_LORA,
    "roberta": {**ENCODER_LORA, "target_modules": QUERY_VALUE["roberta"]},
    "deberta": {**ENCODER_LORA, "target_modules": QUERY_VALUE["deberta"]},
    "bart": FFN_LORA,
}


def _lorada_la(targets: list[str], lora_rank: int, adapter_rank: int) -> dict[str, Settings]:
    return {
        "lmam": MAP,
        "lora": {"r": lora_rank, "lora_alpha": 2 * lora_rank, "lora_dropout": 0.05,
                 "target_modules": targets},
        "bottleneck": {"rank": adapter_rank, "scale": 4.0, "dropout": 0.05},
    }  # fmt: skip


METHODS: dict[str, Method] = {
    "lmam": Method(
        "LMAM: the low-rank attention map alone",
        {family: {"lmam": MAP} for family in EVERY_FAMILY},
        formula="softmax(QKᵀ/√d)·V + M·V, M = (W_a + PE)(W_b + PE)/s on the first n tokens",
        when="rows of one fixed form and a very small budget; not where the text moves",
        paper=LORADA,
    ),
    "fmam": Method(
        "FMAM: the full-rank attention map alone (the ¬L ablation)",
        {family: {"lmam": {"length": 128, "ablation": "full_rank"}} for family in EVERY_FAMILY},
        formula="softmax(QKᵀ/√d)·V + M·V, M = (W + PE·PEᵀ)/s on the first n tokens",
        when="to see what the low rank of the map costs on your rows",
        paper=LORADA,
    ),
    "lora": Method(
        "LoRA: a low-rank change of the weights",
        {family: {"lora": settings} for family, settings in LORA.items()},
        formula="Wx + (α/r)·BAx",
        when="first, as it merges and every server takes it; none of ten was shown to be better",
        paper="https://arxiv.org/abs/2106.09685",
    ),
    "dora": Method(
        "DoRA: LoRA that learns the norm of each output row separately",
        {
            "llama": {"lora": {**LLM_LORA, "r": 16, "lora_alpha": 32, "use_dora": True}},
        },
        formula="m ⊙ (W + (α/r)·BA)x / ‖W + (α/r)·BA‖, the norm by output row",
        when="where LoRA is not enough, and a step may take a third longer",
        paper="https://arxiv.org/abs/2402.09353",
    ),
    "loraplus": Method(
        "LoRA+: LoRA whose B trains at a higher learning rate than A",
        {family: {"lora": {**settings, RATE_RATIO: 16}} for family, settings in LORA.items()},
        formula="Wx + (α/r)·BAx; A ← A − η·Adam(G_A), B ← B − λη·Adam(G_B), λ = loraplus_lr_ratio",
        when="where LoRA learns slowly; it costs nothing more, and the ratio can be searched",
        paper="https://arxiv.org/abs/2402.12354",
    ),
    "lorafa": Method(
        "LoRA-FA: LoRA whose A stays as it is drawn, with a gradient of B that makes up for it",
        {family: {"lora": settings} for family, settings in LORA.items()},
        callbacks=("lorada.methods.lora_matrices:LoraFaCallback",),
        freeze="lorada.methods.lora_matrices:freeze_a",
        formula="Wx + (α/r)·BAx; A is frozen, B ← B − η·Adam(G_B (AAᵀ)⁻¹·(r/α)²)",
        when="where activations do not fit in memory at LoRA's rank",
        paper="https://arxiv.org/abs/2308.03303",
    ),
    "adapter_ffn": Method(
        "Adapter-FFN: a scaled bottleneck adapter parallel to the FFN",
        {
            "llama": {"bottleneck": {"rank": 18, "scale": 4.0}},
            **{
                family: {"bottleneck": {"rank": 32, "scale": 2.0, "dropout": 0.1}}
                for family in ENCODERS
            },
            "bart": {"bottleneck": FFN_ADAPTER},
        },
        formula="FFN(x) + s·U·ReLU(Dx)",
        when="beside a map or a prefix, or alone where nothing has to merge",
        paper=UNIFIED,
    ),
    "series": Method(
        "series adapter of LLM-Adapters, after down_proj",
        {"llama": {"bottleneck": {"placement": "series", "rank": 256}}},
        formula="y + U·tanh(Dy), y = W_down·x",
        when="to compare with LLM-Adapters' results",
        paper=LLM_ADAPTERS,
    ),
    "parallel": Method(
        "parallel adapter of LLM-Adapters, beside up_proj and down_proj",
        {"llama": {"bottleneck": {"placement": "parallel", "rank": 256}}},
        formula="Wx + U·tanh(Dx) for W = W_up, W_down",
        when="to compare with LLM-Adapters' results; it trains four times what LoRA does there",
        paper=LLM_ADAPTERS,
    ),
    "houlsby": Method(
        "Houlsby's adapters, after attention and FFN",
        {family: {"bottleneck": {"placement": "houlsby", "rank": 16}} for family in ENCODERS},
        formula="LN(x + y + U·ReLU(Dy)), y = Attn(x) or FFN(x)",
        when="on encoders, to compare with published results on GLUE",
        paper="https://arxiv.org/abs/1902.00751",
    ),
    "pfeiffer": Method(
        "Pfeiffer's adapter, after the FFN, its residual sum and its norm",
        {
            "bart": {"bottleneck": {"placement": "pfeiffer", "rank": 600}},
            **{
                family: {"bottleneck": {"placement": "pfeiffer", "rank": 32}} for family in ENCODERS
            },
        },
        formula="LN(x + y + U·ReLU(Dz)), z = LN(x + y), y = FFN(x); on mBART without the norms",
        when="on encoders, with one adapter in a layer instead of Houlsby's two",
        paper="https://arxiv.org/abs/2005.00247",
    ),
    "pa_attn_ffn": Method(
        "parallel adapters beside attention and FFN",
        {
            "bart": {
                "pa_attn": {"placement": "pa_attn", "rank": 30}, "bottleneck": FFN_ADAPTER,
            },
        },
        formula="W_o·(Attn(x) + U₁·ReLU(D₁x)); FFN(x) + s·U₂·ReLU(D₂x)",
        when="on encoder–decoders, to compare with He et al.'s results",
        paper=UNIFIED,
    ),
    "prefix": Method(
        "prefix tuning: learned keys and values before those of the text",
        {
            "llama": {"prefix": {"length": 30, "initial_std": 1.0}},
            "llama-13b": {"prefix": {"length": 10, "initial_std": 1.0}},
            **{family: {"prefix": {"length": 32, "projection": 800}} for family in ENCODERS},
            "bart": {"prefix": {"length": 30, "projection": 800}},
        },
        formula="Attn(Q, [P_k; K], [P_v; V])",
        when="to steer a base by learned tokens; they take room in the cache of every layer",
        paper="https://arxiv.org/abs/2101.00190",
    ),
    "mam": Method(
        "MAM: prefix tuning with Adapter-FFN",
        {
            **{
                family: {
                    "prefix": {"length": 16, "projection": 800},
                    "bottleneck": {"rank": 16, "scale": 2.0, "dropout": 0.1},
                }
                for family in ENCODERS
            },
            "bart": {
                "prefix": {"length": 30, "projection": 800}, "bottleneck": FFN_ADAPTER,
            },
        },
        formula="Attn(Q, [P_k; K], [P_v; V]); FFN(x) + s·U·ReLU(Dx)",
        when="where a prefix or Adapter-FFN alone is not enough, as He et al. found",
        paper=UNIFIED,
    ),
    "prefix_lora": Method(
        "prefix tuning with LoRA on the FFN",
        {
            "bart": {"prefix": {"length": 30, "projection": 800}, "lora": FFN_LORA},
        },
        formula="Attn(Q, [P_k; K], [P_v; V]); Wx + (α/r)·BAx for the FFN's W",
        when="on encoder–decoders, to compare with He et al.'s results",
        paper=UNIFIED,
    ),
    "autopeft": Method(
        "AutoPEFT: serial and parallel adapters and a prefix, without the search for their layers",
        {
            **dict.fromkeys(ENCODERS, _autopeft(12, 12, 6)),
            "bart": _autopeft(256, 256, 32),
            # mBART has no norm after the FFN, which the serial adapter needs.
            "mbart": {
                "parallel_ffn": {"rank": 512, "scale": 4.0, "dropout": 0.0},
                "prefix": {"length": 32, "projection": 800},
            },
        },
        arguments={
            "learning_rate": 1e-4, "num_train_epochs": 20, "per_device_train_batch_size": 32,
        },
        formula="LN(A_s(LN(y + x)) + y + A_p(x) + x), y = FFN(x); Attn(Q, [P_k; K], [P_v; V])",
        when="on encoders, to compare with AutoPEFT's results",
        paper="https://arxiv.org/abs/2301.12132",
    ),
    "quanta": Method(
        "QuanTA: a full-rank change of the weights, made of gates on pairs of axes",
        {family: {"quanta": {"target_modules": QUERY_VALUE[family]}} for family in EVERY_FAMILY},
        formula="Wx + (T − S)x, T = ∏ T⁽ᵃᵇ⁾ over pairs of axes, S = T at the start",
        when="where a low rank is not enough: the change has full rank and few parameters",
        paper="https://arxiv.org/abs/2406.00132",
    ),
    "ist": Method(
        "IST: LoRA that trains a quarter of the layers at a time, important ones more often",
        {
            "llama": {"lora": LLM_LORA},
            "llama3-8b": {"lora": {**LLM_LORA, "use_dora": True}},
        },
        callbacks=("lorada.methods.callbacks.ist:ISTCallback",),
        arguments={"ddp_find_unused_parameters": True},
        formula="Wx + (α/r)·BAx; layers drawn by σ(−I), I ← I + η·(R − mean R)·σ′(I)",
        when="where LoRA on all layers at once overfits or takes too much memory",
        paper="https://arxiv.org/abs/2410.11772",
    ),
    "owlore": Method(
        "OwLore: trains a few whole layers at a time, with GaLore's low-rank gradients",
        trainable=EVERYTHING,
        callbacks=("lorada.methods.callbacks.owlore:OwLoreCallback",),
        optimizer="lorada.methods.galore:galore",
        arguments={"learning_rate": 3e-4, "ddp_find_unused_parameters": True},
        formula="W ← W − η·P·Adam(PᵀG), P from G's SVD; layers drawn by outliers of |W|·‖x‖",
        when="for the reach of full fine-tuning with the optimizer state of a few layers",
        paper="https://arxiv.org/abs/2405.18380",
        source="Table 4",
    ),
    "owlore_full": Method(
        "OwLore-Full: trains a few whole layers at a time, with AdamW",
        trainable=EVERYTHING,
        callbacks=("lorada.methods.callbacks.owlore:OwLoreCallback",),
        arguments={"learning_rate": 3e-4, "ddp_find_unused_parameters": True},
        formula="W ← W − η·Adam(G); layers drawn by outliers of |W|·‖x‖",
        when="as OwLore, where memory allows for whole gradients of a layer",
        paper="https://arxiv.org/abs/2405.18380",
        source="Table 4",
    ),
    "adalora": Method(
        "AdaLoRA: LoRA that prunes the least important ranks",
        {
            "deberta": {
                "adalora": {
                    "init_r": 12, "target_r": 8, "lora_alpha": 16, "beta1": 0.85, "beta2": 0.85,
                    "orth_reg_weight": 0.1, "total_step": 10**9,
                    "tinit": 0.125, "tfinal": 0.5, "deltaT": 0.0015,  # of the steps of the run
                    "target_modules": r".*encoder.*\.(query_proj|key_proj|value_proj|dense)$",
                },
            },
        },
        callbacks=("lorada.methods.callbacks.adalora_pruning:AdaLoraCallback",),
        formula="Wx + (α/r)·PΛQx; entries of Λ pruned by importance to a budget",
        when="where it is not known which matrices need a higher rank",
        paper="https://arxiv.org/abs/2303.10512",
    ),
    "sora": Method(
        "SoRA: LoRA with gates that training sets to zero",
        {family: {"sora": {"rank": 8, "alpha": 16}} for family in ENCODERS},
        callbacks=("lorada.methods.callbacks.sora_thresholds:SoraCallback",),
        arguments={"weight_decay": 0.1, "warmup_steps": 0.06, "max_grad_norm": 0.1},
        formula="Wx + (α/r)·B(g ⊙ Ax); g ← soft threshold of (g, ξ)",
        when="to find the rank by training: gates that reach zero drop out",
        paper="https://arxiv.org/abs/2311.11696",
    ),
    "shira": Method(
        "SHiRA-SNIP: a sparse, fixed set of entries of the weights",
        {"llama": {"shira": {"r": 38, **LLM_MATRICES}}},
        prepare="lorada.methods.snip:snip",
        arguments={"learning_rate": 5e-4},
        formula="(W + M ⊙ S)x, M = the largest |W ⊙ ∂ℓ/∂W|",
        when="to switch between adapters fast: about a hundredth of the entries changes",
        paper="https://arxiv.org/abs/2406.13175",
    ),
    "lamda": Method(
        "LaMDA++: a small matrix between two projections from the SVD, one frozen step by step",
        {"llama": {"lamda": {"rank": 32, "ranks": "energy", **LLM_MATRICES}}},
        callbacks=("lorada.methods.callbacks.lamda_schedule:LamdaCallback",),
        formula="(W − s·UΣVᵀ)x + s·BMAx, B, M, A = U, Σ, Vᵀ at the start; B freezes by columns",
        when="for less optimizer state at a given rank",
        paper="https://arxiv.org/abs/2406.12832",
    ),
    "omoe": Method(
        "OMoE-DoRA: two DoRA experts whose outputs are made orthogonal",
        {"llama": {"omoe": {"target_modules": ["gate_proj", "up_proj", "down_proj"]}}},
        formula="Wx + Σ gᵢ·uᵢ, u = Gram-Schmidt of the experts' outputs, g = softmax(W_r·x)",
        when="rows of several kinds, if nothing has to merge and a step may take a quarter longer",
        paper="https://arxiv.org/abs/2501.10062",
    ),
    "longlora": Method(
        "LongLoRA: LoRA, embeddings and norms, with shifted sparse attention in training",
        {
            "llama": {
                "lora": {
                    "r": 8, "lora_alpha": 16,
                    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
                    "modules_to_save": ["embed_tokens", "norm"],
                },
            },
        },
        callbacks=(SHIFTED_ATTENTION,),
        arguments={"learning_rate": 2e-5},
        formula="Wx + (α/r)·BAx; attention within groups, half of the heads shifted",
        when="texts that are longer than those the base was trained on",
        paper="https://arxiv.org/abs/2309.12307",
    ),
    "lorada_a": Method(
        "LoRaDA-A: the map with Adapter-FFN",
        {
            "llama": {"lmam": MAP, "bottleneck": {"rank": 18, "scale": 4.0}},
            "roberta": {
                "lmam": {"rank": 3, "length": 512, "heads": 3},
                "bottleneck": {"rank": 16, "scale": 2.0, "dropout": 0.1},
            },
            "deberta": {
                "lmam": {"rank": 2, "length": 512, "heads": 3},
                "bottleneck": {"rank": 16, "scale": 2.0, "dropout": 0.1},
            },
            "bart": {
                "lmam": {"rank": 22, "length": 512, "heads": 16, "stacks": ["encoder"]},
                "bottleneck": FFN_ADAPTER,
            },
            "mbart": {
                "lmam": {"rank": 64, "length": 128, "heads": 4, "stacks": ["encoder"]},
                "bottleneck": {"rank": 820, "scale": 4.0},
            },
        },
        formula="softmax(QKᵀ/√d)·V + M·V; FFN(x) + s·U·ReLU(Dx)",
        when="the paper's system for encoders and encoder–decoders",
        paper=LORADA,
    ),
    "lorada_la": Method(
        "LoRaDA-LA: the map with LoRA and Adapter-FFN",
        {
            "llama": _lorada_la(["o_proj", "down_proj"], 1, 18),
            "llama2-7b": _lorada_la(["o_proj", "down_proj"], 1, 15),
            "llama3-8b": _lorada_la(["o_proj", "up_proj", "down_proj"], 2, 2),
            "llama-13b": _lorada_la(["o_proj", "down_proj"], 1, 12),
            "llama2-70b": _lorada_la(["o_proj", "up_proj", "down_proj"], 1, 7),
        },
        formula="softmax(QKᵀ/√d)·V + M·V; Wx + (α/r)·BAx; FFN(x) + s·U·ReLU(Dx)",
        when="the paper's system for decoders",
        paper=LORADA,
    ),
    "lorada_q": Method(
        "LoRaDA-Q: the map with QuanTA",
        {
            "llama": {
                "lmam": {**MAP, "rank": 1}, "quanta": {"target_modules": QUERY_VALUE["llama"]},
            },
        },
        formula="softmax(QKᵀ/√d)·V + M·V; Wx + (T − S)x",
        when="the paper's best row on LLaMA-7B",
        paper=LORADA,
    ),
    "bitfit": Method(
        "BitFit: only the biases of the base (and of the pooler, with the head)",
        trainable=r"^(?!.*\bpooler\b).*(\b|_)bias$",  # DeBERTa v1 has q_bias and v_bias
        trains="biases",
        with_head=r"\bpooler\b.*\bbias$",
        formula="Wx + b, b trains",
        when="on encoders, for the least change; it was the last of ten on three of four tasks",
        paper="https://arxiv.org/abs/2106.10199",
        source="Table 5",
    ),
    "full": Method(
        "full fine-tuning: every parameter of the base",
        trainable=EVERYTHING,
        formula="W ← W − η·Adam(G)",
        when="where memory allows it, and one model serves one task",
        paper=LORADA,
        source="Table 5",
    ),
}  # fmt: skip


def _published(method: str, model: str, part: str, **changes: object) -> Settings:
    """The paper's settings of a part of a method, with changes."""
    return {**METHODS[method].parts[model][part], **changes}


_OTHERS = ("roberta", "bart")  # than LLaMA; DeBERTa takes those of RoBERTa
_LLAMA_LAYER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_LLAMA_FFN = ["up_proj", "down_proj"]
_BESIDE_FFN = _published("lorada_a", "llama", "bottleneck")
_LLAMA_PREFIX = _published("prefix", "llama", "prefix")


def _bottlenecks(placement: str, **ranks: int) -> PartsByModel:
    """Bottleneck adapters with one placement, and a rank for each kind of model."""
    return {
        kind: {"bottleneck": {"placement": placement, "rank": rank}} for kind, rank in ranks.items()
    }


UNPUBLISHED: dict[str, Unpublished] = {
    "dora": Unpublished(
        "the settings of LoRA in Tables 5 and 10",
        {kind: {"lora": _published("lora", kind, "lora", use_dora=True)} for kind in _OTHERS},
    ),
    "series": Unpublished(
        "the ranks of Adapter-FFN in Tables 5 and 10", _bottlenecks("series", roberta=32, bart=512)
    ),
    "parallel": Unpublished(
        "our choice of ranks; on BART that of LoRA(ffn) in Table 10",
        _bottlenecks("parallel", roberta=16, bart=102),
    ),
    "houlsby": Unpublished(
        "the rank of Table 5, on BART one that gives the size of Pfeiffer's adapter; in a pre-LN "
        "layer y + A(y) after attention and FFN, before the residual sum",
        _bottlenecks("houlsby", llama=16, bart=240),
    ),
    "pfeiffer": Unpublished(
        "our choice of rank; after the residual sum, as in He et al.'s code for mBART",
        _bottlenecks("pfeiffer", llama=32),
    ),
    "pa_attn_ffn": Unpublished(
        "as in Table 10; the adapter beside LLaMA's FFN as in Table 19",
        {
            "llama": {
                "pa_attn": _published("pa_attn_ffn", "bart", "pa_attn"), "bottleneck": _BESIDE_FFN
            },
            "roberta": METHODS["pa_attn_ffn"].parts["bart"],
        },
    ),
    "mam": Unpublished(
        "the prefix of Table 4, the adapter of Table 19",
        {"llama": {"prefix": _LLAMA_PREFIX, "bottleneck": _BESIDE_FFN}},
    ),
    "prefix_lora": Unpublished(
        "as in Table 10; on LLaMA the prefix and the rank of Table 4",
        {
            "llama": {
                "prefix": _LLAMA_PREFIX,
                "lora": _published("lora", "llama", "lora", target_modules=_LLAMA_FFN),
            },
            "roberta": {
                "prefix": _published("prefix_lora", "bart", "prefix"),
                "lora": {**FFN_LORA, "target_modules": _LLAMA_FFN},
            },
        },
        "llama",
    ),
    "autopeft": Unpublished(
        "our choice of sizes, as for encoders; the serial adapter as Pfeiffer's in a pre-LN layer",
        {"llama": _autopeft(12, 12, 6)},
    ),
    "ist": Unpublished(
        "the settings of LoRA in Tables 5 and 10",
        {kind: METHODS["lora"].parts[kind] for kind in _OTHERS},
    ),
    "adalora": Unpublished(
        "as in Table 11, on DeBERTa",
        {
            kind: {
                "adalora": _published(
                    "adalora", "deberta", "adalora", target_modules=_LLAMA_LAYER
                ),
            }
            for kind in ("llama", *_OTHERS)
        },
        "llama",
    ),
    "sora": Unpublished(
        "as in Table 11, on DeBERTa",
        dict.fromkeys(("llama", "bart"), METHODS["sora"].parts["deberta"]),
    ),
    "shira": Unpublished(
        "our choice of rank, about 1 % of the weights as in Table 4",
        {kind: {"shira": {"r": 8, **LLM_MATRICES}} for kind in _OTHERS},
        "llama",
    ),
    "lamda": Unpublished(
        "as in Table 4, on LLaMA", dict.fromkeys(_OTHERS, METHODS["lamda"].parts["llama"]), "llama"
    ),
    "omoe": Unpublished(
        "as in Table 4, on LLaMA", dict.fromkeys(_OTHERS, METHODS["omoe"].parts["llama"]), "llama"
    ),
    "longlora": Unpublished(
        "as in Table 7, on LLaMA; the groups of an encoder have no causal mask",
        dict.fromkeys(_OTHERS, METHODS["longlora"].parts["llama"]),
        "llama",
    ),
    "lorada_la": Unpublished(
        "map and adapter of Tables 15 and 16, LoRA of Table 19",
        {
            kind: {
                "lmam": _published("lorada_a", kind, "lmam"),
                "lora": _published("lorada_la", "llama", "lora"),
                "bottleneck": _published("lorada_a", kind, "bottleneck"),
            }
            for kind in _OTHERS
        },
        "llama",
    ),
    "lorada_q": Unpublished(
        "the map of Tables 15 and 16, QuanTA on query and value as in Table 17",
        {
            kind: {
                "lmam": _published("lorada_a", kind, "lmam"),
                "quanta": _published("quanta", kind, "quanta"),
            }
            for kind in _OTHERS
        },
    ),
}  # fmt: skip
