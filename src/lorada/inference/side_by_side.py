"""Several finished runs on one base model: each is an adapter beside the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from lorada.inference.load import Run, load_run, load_run_beside
from lorada.runs.folder.same_base import adapter_names, refuse_different_bases


@dataclass(frozen=True)
class Adapter:
    """A run, and the name that PEFT knows its adapter by."""

    run: Run
    key: str

    def activate(self) -> None:
        """Make this adapter the one that the model uses; a fully trained model has none."""
        if isinstance(self.run.model, PeftModel):
            self.run.model.set_adapter(self.key, inference_mode=True)


def load_side_by_side(
    folders: Sequence[Path], *, trust_remote_code: bool = False
) -> dict[str, Adapter]:
    """Load finished runs onto one base model, by the names of their folders.

    Raises:
        ValueError: for a run that is not finished, runs on different bases, or a run that is given
            twice.
    """
    names = adapter_names(folders)
    refuse_different_bases(folders)
    first = load_run(folders[0], trust_remote_code=trust_remote_code)
    adapters = {names[0]: Adapter(first, "default")}
    for number, (name, folder) in enumerate(zip(names[1:], folders[1:], strict=True), start=2):
        key = f"run{number}"  # PEFT allows no dots in a name, which a folder may have
        run = load_run_beside(first, folder, key, trust_remote_code=trust_remote_code)
        adapters[name] = Adapter(run, key)
    return adapters
