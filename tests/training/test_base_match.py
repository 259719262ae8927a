"""The fingerprint of a base's weights."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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


def by_tensors(folder):
    """The same from whole tensors."""
    lines = []
    for path in folder.glob("*.safetensors"):
        file = safe_open(path, "pt")
        for name, tensor in load_file(path).items():
            numbers = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)].contiguous()
            digest = hashlib.sha256(numbers.view(torch.uint8).numpy().tobytes()).hexdigest()
            lines.append(
                f"{name} {tuple(tensor.shape)} {file.get_slice(name).get_dtype()} {digest}"
            )
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize("dtype", [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn,
])  # fmt: skip
def test_it_is_of_numbers_spread_over_every_tensor(tmp_path, dtype):
    folder = folder_with(tmp_path / "base", weights(dtype), {"more": weights(dtype)["5"]})
    assert weights_fingerprint(str(folder)) == by_tensors(folder)


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
