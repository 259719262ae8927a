"""The entry point of the command ``lorada``, outside the package so that it starts without torch.

``import lorada`` makes the adapter types known to PEFT, which takes seconds. It does not if this
module is loaded; each command then imports the modules it needs.
"""


def main() -> None:
    """Run the command line."""
    from lorada.cli import main as run

    run()
