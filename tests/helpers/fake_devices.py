"""A machine that says it has an accelerator, for tests of what is chosen for one."""

import pytest
import torch


@pytest.fixture
def on(monkeypatch):
    """Makes this a machine with an accelerator, of a kind and with what it can do."""

    def set_device(kind, *, bf16=True, capability=(8, 0)):
        device = torch.device(kind) if kind else None
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: device is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
        for name in ("cuda", "xpu"):
            module = getattr(torch, name)
            monkeypatch.setattr(module, "is_bf16_supported", lambda **given: bf16)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return set_device
