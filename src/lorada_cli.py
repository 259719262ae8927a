"""The command ``lorada``, apart from the package: to name its commands takes no torch.

``import lorada`` makes the PEFT types known at once, which takes seconds. With this module loaded
it does not, and each command imports the modules it needs.
"""


def main() -> None:
    """Run the command line."""
    from lorada.cli import main as run

    run()
