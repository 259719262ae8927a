"""PEFT's own tests that meet a config of ours, on a model or two of each family.

PEFT's tests are in its sdist, not in its wheel: the sdist of the installed version is fetched once
into a cache folder and unpacked outside this repository. ``peft_suite/`` holds what is ours.
"""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
import transformers
from paths import TESTS
from peft import LoraConfig

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
ENCODER = {**SIZES, "intermediate_size": 48}
LLAMA_LIKE = {**ENCODER, "num_key_value_heads": 2}
BART = {"vocab_size": 64, "d_model": 32, "max_position_embeddings": 128, "init_std": 0.2}
for side in ("encoder", "decoder"):
    BART |= {f"{side}_layers": 2, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 48}
GPT2 = {**SIZES, "bos_token_id": 1, "eos_token_id": 2}

# Family -> the models its tests run on. PEFT's tests tell architectures apart by these names.
MODELS = {
    "decoder": {"LlamaForCausalLM": ("Llama", LLAMA_LIKE), "GPT2LMHeadModel": ("GPT2", GPT2)},
    "encoder-decoder": {"BartForConditionalGeneration": ("Bart", BART)},
    "features": {"BertModel": ("Bert", ENCODER)},
    "classifier": {"BertForSequenceClassification": ("Bert", ENCODER)},
    "config": {},
    "custom": {},
}
FILES = {
    "decoder": "test_decoder_models",
    "encoder-decoder": "test_encoder_decoder_models",
    "features": "test_feature_extraction_models",
    "classifier": "test_seq_classifier",
    "config": "test_config",
    "custom": "test_custom_models",
}
# How many tests must have met a config of ours and passed: per model, or in all where there is
# none. A suite that stopped meeting our configs would pass as well.
LEAST = {
    "decoder": 250,
    "encoder-decoder": 110,
    "features": 58,
    "classifier": 45,
    "config": 160,
    "custom": 600,
}

# The first four need attention or an FFN, which no custom model has.
OURS = ("LmamConfig", "PrefixConfig", "BottleneckConfig", "QuantaConfig")
OURS += ("SoraConfig", "LamdaConfig", "OmoeConfig", "LoradaConfig")


@dataclass(frozen=True)
class Outcome:
    """How one of PEFT's tests ended."""

    file: str
    case: str
    outcome: str  # passed, skipped or failed
    text: str

    @property
    def family(self) -> str:
        if "MoreEncoderDecoder" in self.file:
            return "encoder-decoder"
        return next((family for family, file in FILES.items() if file == self.file), "decoder")


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


def write_models(folder: Path) -> None:
    for family, chosen in MODELS.items():
        for name, (config_name, sizes) in chosen.items():
            torch.manual_seed(0)
            config = getattr(transformers, f"{config_name}Config")(**sizes)
            getattr(transformers, name)(config).save_pretrained(folder / family / name)
    LoraConfig().save_pretrained(folder / "adapter")  # in place of the one that PEFT has on the hub


def run_suite(folder: Path) -> list[Outcome]:
    """PEFT's tests of all families, in one process."""
    with tarfile.open(sdist()) as archive:
        archive.extractall(folder, filter="data")
    root = folder / f"peft-{peft.__version__}"
    (root / "tests" / "__init__.py").touch()  # its files import each other as a package
    write_models(root / "models")
    command = [sys.executable, "-m", "pytest", "-p", "lorada_plugin", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, f"--rootdir={root}", "-q", "--tb=short", "-W", "ignore"]
    command += ["--junitxml=report.xml", *(f"tests/{file}.py" for file in FILES.values())]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        # Relative, so that no folder above has a say in tests that look for a word in the name.
        "LORADA_SUITE_MODELS": "models",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(TESTS / "peft_suite"), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    done = subprocess.run(
        [*command, str(TESTS / "peft_suite" / "more_tests.py")],
        cwd=root, env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    return read_report(root / "report.xml")


def read_report(path: Path) -> list[Outcome]:
    outcomes = []
    for case in ElementTree.parse(path).iter("testcase"):
        where = case.get("classname")
        file = next((file for file in FILES.values() if f".{file}." in where), where)
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = "passed" if not bad else "skipped" if bad[0].tag == "skipped" else "failed"
        text = f"{bad[0].get('message')}\n{bad[0].text}" if bad else ""
        outcomes.append(Outcome(file, case.get("name"), outcome, text))
    return outcomes


@pytest.mark.slow
def test_peft_tests_pass_with_our_configs(tmp_path):
    outcomes = run_suite(tmp_path)
    failed = [o for o in outcomes if o.outcome == "failed"]
    assert not failed, "\n".join(f"{o.file} {o.case}: {o.text[:300]}" for o in failed)

    passed = [o for o in outcomes if o.outcome == "passed"]
    for family, models in MODELS.items():
        own = [o.case for o in passed if o.family == family]
        assert len(own) >= LEAST[family] * (len(models) or 1), family
        every = family in ("decoder", "config", "custom")
        for config in OURS[4 * (family == "custom") :] if every else ("LoradaConfig",):
            assert any(config in case for case in own), f"{family} met no {config}"
    merges = [o for o in passed if o.family == "decoder" and "merge" in o.case]
    assert len(merges) >= 4 * len(MODELS["decoder"])
