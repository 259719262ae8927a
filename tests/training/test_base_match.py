"""The fingerprint of a base's weights."""

import json

import torch
from safetensors.torch import save_file

from lorada.training.models.loading import SAMPLED, weights_fingerprint

SHAPES = [(), (1,), (SAMPLED - 1,), (SAMPLED,), (SAMPLED + 1,), (3, 50), (0, 4), (7, 9, 31)]


def weights(dtype):
    torch.manual_seed(0)
    return {f"{i}": (torch.randn(shape) * 9).to(dtype) for i, shape in enumerate(SHAPES)}


def folder_with(folder, *files):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for number, tensors in enumerate(files):
        save_file(tensors, folder / f"{number}.safetensors", metadata={"format": "pt"})
    return folder


def test_it_is_of_tensors_and_not_of_files_and_of_every_dtype(tmp_path):
    dtypes = (torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn)
    found = set()
    for number, dtype in enumerate(dtypes):
        tensors = weights(dtype)
        whole = folder_with(tmp_path / f"whole-{number}", tensors)
        first = {name: tensors.pop(name) for name in ("3", "5")}
        parted = folder_with(tmp_path / f"parted-{number}", first, tensors)
        found.add(weights_fingerprint(str(whole)))
        assert weights_fingerprint(str(parted)) == weights_fingerprint(str(whole))
    assert len(found) == len(dtypes)


def test_a_changed_number_shape_or_dtype_changes_it(tmp_path):
    def fingerprint(name, tensor):
        return weights_fingerprint(str(folder_with(tmp_path / name, {"weight": tensor})))

    plain = torch.arange(12.0)
    changed = plain.clone()
    changed[-1] = 0
    others = {
        "number": changed, "shape": plain.view(3, 4), "dtype": plain.view(torch.int32),
    }  # fmt: skip
    found = {fingerprint(name, tensor) for name, tensor in others.items()}
    assert len(found | {fingerprint("plain", plain)}) == 4


def test_weights_that_are_not_here_have_none(tmp_path):
    assert weights_fingerprint("nobody/no-such-model") is None
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert weights_fingerprint(str(tmp_path)) is None
