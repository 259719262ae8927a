"""The groups that the README and the catalogue show the methods in."""

from lorada.methods.method import PARTS, Method


def group_of(method: Method) -> str:
    """The line of the table that a method belongs to, by its parts."""
    parts = method.part_names
    if not parts:
        return "parameters of the base itself"
    if "lmam" in parts:
        return "the map alone" if parts == ["lmam"] else "the map with other parts"
    if "prefix" in parts:
        return "prefix tuning, alone and with other parts"
    if {PARTS[part] for part in parts} == {PARTS["bottleneck"]}:
        return "bottleneck adapters"
    if "lora" in parts or "adalora" in parts:
        return "LoRA and its variants"
    return "other changes of the weights"
