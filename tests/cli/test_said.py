"""What is printed is what there is: brackets and colons of paths and prompts are letters."""

from paths import ROOT
from rich.table import Table

from lorada.support.progress import plain_console

SOURCE = ROOT / "src" / "lorada"
ODD = "runs/x[/y] [bold]a[/bold] :smile: [link=x]"


def test_consoles_print_paths_as_they_are():
    console = plain_console()
    table = Table("a [b]", title=ODD)
    table.add_row(ODD)
    with console.capture() as capture:
        console.print(ODD, soft_wrap=True)
        console.print(table, soft_wrap=True)
        console.print(f"• {ODD}", highlight=False, soft_wrap=True)
    assert capture.get().count(ODD) == 4


def test_every_console_is_made_in_the_one_place_where_brackets_are_letters():
    users = [p.name for p in SOURCE.rglob("*.py") if "Console(" in p.read_text()]
    assert users == ["progress.py"]
