"""The names of a served run and of its base; without torch."""


def base_name(run: str) -> str:
    """The name under which the base of a run is served."""
    return f"{run}-base"
