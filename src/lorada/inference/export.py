"""``lorada export RUN DIR``: writes a run as one model folder, or as an ONNX graph.

Maps, bottlenecks and a pooling cannot be merged into the base's weights; most other parts can. DIR
gets the base with those merged, and an adapter of the rest beside it, if there is any, which
transformers loads too once lorada has been imported. A graph has all parts in it.
"""

import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lorada.data.scoring.metrics import THRESHOLD
from lorada.data.tokenize import context_of
from lorada.inference.exported_config import mark
from lorada.inference.generate import end_tokens
from lorada.inference.load import Run, load_run
from lorada.inference.modelfile import write_modelfile
from lorada.inference.serving.names import base_name
from lorada.runs.folder import SERVED, finished_run, refuse_filled
from lorada.support.error_messages import full_disk_in_one_line, out_of_memory
from lorada.support.files import atomic_path, one_at_a_time, scratch_folder
from lorada.support.models import published_name
from lorada.support.row_sources import HEADED
from lorada.training.model_card import front_matter, write_model_card, write_text
from lorada.training.models.adapters import BESIDE, part_kinds, save_pooling_beside, task_type
from lorada.training.models.candidate_scores import accepted, positions_of
from lorada.training.models.loading import kind_of, load_config, local_folder
from lorada.tuners.base.merged_weights import UnmergeableError
from lorada.tuners.lmam import map_configs
from lorada.tuners.stack.by_transformers import refuse_without_peft_model

logger = logging.getLogger(__name__)

Inputs = dict[str, Tensor]
# The texts that a licence may ask to pass on with the weights.
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Exported:
    """What an export has written.

    Attributes:
        folder: the folder of the model or the graph.
        merged: kinds of the parts that are merged into the base's weights.
        adapter: kinds of the other parts, in an adapter beside the base, or in the graph.
        opset: of an ONNX graph.
        difference: the largest difference of a graph's logit from torch's.
    """

    folder: Path
    merged: list[str]
    adapter: list[str]
    opset: int | None = None
    difference: float | None = None

    def plain(self) -> dict[str, Any]:
        """It as JSON has it; a model has no fields of a graph."""
        fields = {"folder": str(self.folder), "merged": self.merged, "adapter": self.adapter}
        if self.opset is None:
            return fields
        return {**fields, "opset": self.opset, "difference": self.difference}


def export(folder: Path, target: Path, *, trust_remote_code: bool = False) -> Exported:
    """Write the finished run in ``folder`` as a model, with every part merged that can be.

    ``target`` is a new or empty folder; if an error ends the export, it is not there, or empty.
    """
    run = _load_to_export(folder, trust_remote_code)
    model, merged, left = merge(run)
    if not merged and isinstance(model, PeftModel):
        refuse_without_peft_model(model.peft_config["default"].parts)
    with _new_folder(target) as fresh:
        _write(model, run, fresh)
        if left:
            mark(fresh)
        elif run.kind == "decoder" and run.form not in HEADED:
            write_modelfile(run, fresh)
        copy_licence(run.recipe.model, fresh)
        task = task_type(run.model.config, classifies=run.form in HEADED)
        write_model_card(fresh, run.recipe, merged, left, task)
    return Exported(target, merged, left)


def served_folder(folder: Path, *, trust_remote_code: bool = False) -> Path:
    """Export a finished run for the server if that is not done yet, and return the folder to serve.

    It is written at the first call, into the run. The base is linked beside it where it is here.

    It is written into the run, with links by the names that clients use: of the run, and of its
    base where that is here. An encoder or encoder–decoder, and a quantised base, are refused.
    """
    recipe = finished_run(folder)
    served = folder.resolve() / SERVED
    if not (served / "model").is_dir():  # later the base is not needed
        config = load_config(recipe.model, trust_remote_code=trust_remote_code)
        if kind_of(config) != "decoder":
            raise ValueError(
                f"{recipe.model} is no decoder, and transformers' server answers with those alone: "
                "lorada generate and lorada predict answer with it"
            )
        _refuse_quantised(recipe.model, config)
    try:
        served.mkdir(exist_ok=True)
    except OSError as error:
        remedy = f"lorada export {folder} DIR, then lorada run transformers serve DIR"
        raise OSError(f"{served} cannot be written ({error.strerror}): {remedy}") from error
    with one_at_a_time(served / "model"):
        if not (served / "model").is_dir():
            export(folder, served / "model", trust_remote_code=trust_remote_code)
    # Clients ask for a model by the name of its folder. A link to a run has a name of its own.
    link = served / Path(os.path.abspath(folder)).name
    if not link.exists():
        link.symlink_to("model")
    _link_base(recipe.model, link.with_name(base_name(link.name)))
    return link


def _link_base(model: str, link: Path) -> None:
    """Link the folder of a base; without a link where the base is not on this machine."""
    base = local_folder(model)
    link.unlink(missing_ok=True)
    if base is not None:
        link.symlink_to(base.resolve())


def _refuse_quantised(model: str, config: Any) -> None:
    """Refuse to merge into a quantised base."""
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{model} is quantised, and merging would round its weights again: train "
            "on the same model unquantised, or load base and adapter as they are"
        )


def _load_to_export(folder: Path, trust_remote_code: bool) -> Run:
    """Load a finished run to be merged, and write the tokens that end its answers into its config.

    A quantised base is refused. A model that does not generate has no such tokens.
    """
    run = load_run(folder, trust_remote_code=trust_remote_code, to_merge=True)
    base = _base_of(run.model)
    _refuse_quantised(run.recipe.model, base.config)
    if not base.can_generate():
        return run
    ends = end_tokens(run)
    if ends:
        base.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    return run


def _base_of(model: PeftModel | PreTrainedModel) -> Any:
    """The model of transformers under an adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder to write, which becomes ``target`` at the end of the ``with`` block.

    Raises:
        ValueError: if somebody has put other files there meanwhile.
        OSError: if the disk is full.
    """
    remedy = "Free space, then run the command again"
    if not target.is_dir():
        with full_disk_in_one_line(target, remedy), atomic_path(target) as fresh:
            yield fresh
            refuse_filled(target)  # again, as somebody may have put files there meanwhile
        return
    # A folder that is there stays: it may be the working one, a link, or a mounted disk.
    with full_disk_in_one_line(target, remedy), scratch_folder(target) as scratch:
        yield scratch / "model"
        if any(path.name != scratch.name for path in target.iterdir()):
            raise ValueError(f"{target} is not empty: choose a new folder")
        # A folder without its config is no model, so an export that is cut off here is none.
        written = sorted((scratch / "model").iterdir(), key=lambda path: path.suffix == ".json")
        for path in written:
            path.replace(target / path.name)


def copy_licence(model: str, fresh: Path) -> None:
    """Copy the texts of its licence from the folder of a base."""
    if not Path(model).is_dir():
        return
    for pattern in LICENCE_FILES:
        for path in Path(model).glob(pattern):
            if path.is_file():
                shutil.copy(path, fresh)


def merge(run: Run) -> tuple[PeftModel | PreTrainedModel, list[str], list[str]]:
    """Merge every part that can be merged into the model; return it, and the kinds merged and left.

    If a part that wraps modules cannot be merged, none is: with the others merged, it would wrap
    other weights than those it was trained on.

    Warnings say why nothing is merged, and that weights in 16 bits are rounded.
    """
    parts = part_kinds(run.model)
    model = run.model
    if isinstance(model, PeftModel):
        try:
            model = model.merge_weights()
        except UnmergeableError as error:
            logger.warning("nothing is merged: %s", str(error).partition(": ")[0])
    left = part_kinds(model)
    merged = [kind for kind in parts if kind not in left]
    if merged and run.model.dtype in (torch.bfloat16, torch.float16):
        logger.warning(
            "the base is %s, so merged weights are rounded to that, and the exported model is not "
            "exactly the trained one: score both",
            str(run.model.dtype).removeprefix("torch."),
        )
    return model, merged, left


def _write(model: PeftModel | PreTrainedModel, run: Run, fresh: Path) -> None:
    """Write the model, its tokenizer, and the adapter of the parts that could not be merged."""
    if isinstance(model, PeftModel):
        model.peft_config["default"].base_model_name_or_path = BESIDE
        # The exported base has the embeddings, so PEFT need not compare them with another base's.
        model.save_pretrained(fresh, save_embedding_layers=False)
        model = model.unload()
    model.save_pretrained(fresh)
    save_pooling_beside(model, fresh)
    run.tokenizer.save_pretrained(fresh)


# The largest difference of a graph from torch, as a share of the largest logit. In fp32 the sums
# of both have errors of some 1e-6 of that; a part that is missing is off by its own effect.
TOLERANCE = 1e-4
PLAIN = "export the model without --format"
SHORT = 12  # tokens of a short text
CODE = """\
import onnxruntime

session = onnxruntime.InferenceSession("path/to/this/folder/model.onnx")"""
LABELS_NOTE = f"""
A text may have several labels. The sigmoid of each number is the probability of the label at its
place in `id2label` of `config.json`; a text has those of {THRESHOLD} or more.
"""


def export_onnx(folder: Path, target: Path, *, trust_remote_code: bool = False) -> Exported:
    """Write the finished run in ``folder`` as an ONNX graph in fp32, as ``export`` writes a model.

    A graph whose logits differ much from torch's is refused.
    """
    run = _load_to_export(folder, trust_remote_code)
    recipe = run.recipe
    if run.kind == "encoder_decoder":
        raise ValueError(f"{recipe.model} is an encoder–decoder, which is no one graph: {PLAIN}")
    run.model.float().cpu()
    run.model.config.use_cache = False
    with _new_folder(target) as fresh:
        batches = list(_test_batches(run))
        # Before the merge, which changes the run's model.
        torch_logits = [_logits(run.model, batch) for batch in batches]
        model, merged, left = merge(run)
        base = _base_of(model)
        with _one_refusal(run):
            graph = _graph_of(base, batches[0])
            graph_logits = [_logits(graph, batch) for batch in batches]
            opset = graph.program.opset_imports[""]
            difference = _difference(graph_logits, torch_logits)
            graph.save_pretrained(fresh)
        if base.can_generate():  # what ends a text is in these settings
            base.generation_config.save_pretrained(fresh)
        run.tokenizer.save_pretrained(fresh)
        copy_licence(recipe.model, fresh)
        metadata = front_matter(
            recipe, "onnx", task_type(base.config, classifies=run.form in HEADED)
        )
        title = f"{published_name(recipe.model)} after {recipe.method}, as a graph"
        facts = (
            f"ONNX opset {opset}, float32; logits differ from torch's by up to {difference:.1e}."
        )
        notes = LABELS_NOTE if run.form == "labels" else ""
        write_text(fresh, metadata, title=title, summary=facts, code=CODE, notes=notes)
    return Exported(target, merged, left, opset, difference)


@contextmanager
def _one_refusal(run: Run) -> Iterator[None]:
    """Turn any error of exporter, runtime or comparison into one line, but no lack of memory.

    Raises:
        ValueError: in place of any error but those of files and of memory.
    """
    level_before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # Drop what the exporters print and log; they end with an error if something is wrong.
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    except Exception as error:  # of any kind, as each model fails in its own way
        if isinstance(error, OSError) or out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"transformers {transformers.__version__} cannot export this {run.config.model_type} "
            f"model to ONNX ({type(error).__name__}: {reason}): {PLAIN}"
        ) from error
    finally:
        logging.disable(level_before)


def _graph_of(model: Any, example: Inputs) -> Any:
    """The graph of a model as it reads a text."""
    import onnxruntime
    from transformers.exporters import OnnxConfig, OnnxExporter

    any_size = torch.export.Dim.DYNAMIC  # not AUTO: an error if it would serve one size only
    sizes = {name: {0: any_size, 1: any_size} for name in example}
    # onnxruntime optimises a graph when it loads it; onnxscript's optimiser takes minutes.
    config = OnnxConfig(dynamic_shapes=sizes, optimize=False)
    graph = OnnxExporter().export(model, example, config)
    for node in graph.program.graph.all_nodes():
        node.metadata_props.clear()  # the lines of Python that each operation comes from
    onnxruntime.set_default_logger_severity(3)  # errors; it warns of what it keeps
    return graph


def _difference(graph_logits: list[Tensor], torch_logits: list[Tensor]) -> float:
    """The largest difference of a graph's logit from torch's, which rounding must explain.

    Args:
        graph_logits: of each batch, as the exported graph computes them.
        torch_logits: of the same batches, as the model does.

    Raises:
        ArithmeticError: if they differ by more than ``TOLERANCE`` of the largest logit, or by NaN.
    """
    largest_logit = max(float(logits.abs().max()) for logits in torch_logits)
    differences = []
    for ours, expected in zip(graph_logits, torch_logits, strict=True):
        differences.append((ours - expected).abs().max())
    difference = float(torch.stack(differences).max())  # a NaN of any batch stays
    if not difference <= TOLERANCE * largest_logit:  # a NaN is refused too
        raise ArithmeticError(f"its logits differ from torch's by up to {difference:.2g}")
    return difference


@torch.no_grad()
def _logits(call: Callable[..., Any], batch: Inputs) -> Tensor:
    """The logits of a batch of texts: of each, or of each token that is no pad."""
    logits: Tensor = call(**batch).logits.float()
    if logits.dim() == 2:  # a head has answered: one row for each text
        return logits
    return logits[batch["attention_mask"].bool()]


def _test_batches(run: Run) -> Iterator[Inputs]:
    """Padded batches of any tokens: short ones, and longer ones than the longest map."""
    base = _base_of(run.model)
    longest_map = max([SHORT, *(config.length for config in map_configs(run.model))])
    longer = longest_map + 8
    context = context_of(base.config) or longer
    # All sizes of the first differ from each other, since a trace takes equal ones for one.
    yield _test_batch(run, base, rows=3, length=SHORT)
    yield _test_batch(run, base, rows=2, length=min(longer, context))


def _test_batch(run: Run, base: Any, *, rows: int, length: int) -> Inputs:
    """A batch of texts of any tokens, each (row, token), with pads before all but the first."""
    special = {*run.tokenizer.all_special_ids, base.config.pad_token_id}
    # Either may be larger: a tokenizer may have tokens that the embeddings lack.
    vocabulary = min(len(run.tokenizer), base.config.get_text_config().vocab_size)
    tokens = torch.tensor([token for token in range(vocabulary) if token not in special])
    pad_counts = length * torch.arange(rows)[:, None] // (rows + 1)  # of each row
    # Pads stand on the left, as a decoder's prompts must end alike.
    mask = (torch.arange(length) >= pad_counts).long()
    # 31 is prime to most sizes, so that neighbours are different tokens.
    places = torch.arange(rows * length).reshape(rows, length) * 31 % len(tokens)
    ids = torch.where(mask.bool(), tokens[places], run.tokenizer.pad_token_id or 0)
    batch = {"input_ids": ids, "attention_mask": mask}
    reads_types = "token_type_ids" in run.tokenizer.model_input_names
    if reads_types and getattr(base.config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = ids % 2  # any 0 and 1 will do
    if run.form not in HEADED:  # a model with a head counts the positions by itself
        batch |= accepted(base, position_ids=positions_of(mask))
    return batch
