"""``kdstream recipes``: the recipes that come with kdstream, one of them in full, or the schema of recipes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from kdstream.cli.frame import CommandParser, command_parser, run_command
from kdstream.errors import UserError

SERVER = "# yaml-language-server: $schema="
"""How an editor's YAML support finds a file's schema."""
EXAMPLES = """examples:
  kdstream recipes
  kdstream recipes quickstart > mine.yaml
  kdstream recipes --schema > recipe.schema.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(_parser, _run, arguments)


def _parser() -> CommandParser:
    parser = command_parser("recipes", __doc__, EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="RECIPE", help="one to show, as its file has it; default: all")
    parser.add_argument(
        "--schema",
        action="store_true",
        help=f"JSON Schema of recipes: an editor completes and checks a file that begins with the line "
        f"'{SERVER}recipe.schema.json'",
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    from kdstream.recipe_file import RECIPES, find_recipe

    if options.schema:
        if options.name is not None:
            raise UserError("--schema is that of all recipes: leave the name out")
        print((RECIPES / "recipe.schema.json").read_text(encoding="utf-8"), end="")
    elif options.name is not None:
        print(_here(find_recipe(options.name).read_text(encoding="utf-8")), end="")
    else:
        _list()


def _list() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kdstream.recipe_file import RECIPES, is_table, known_recipes, read_recipe

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    grid.add_column("recipe", no_wrap=True)
    grid.add_column("what")
    tables = 0
    for name in known_recipes():
        path = RECIPES / f"{name}.yaml"
        if is_table(read_recipe(path)):
            tables += 1
            continue
        grid.add_row(Text(name), Text(_title(path.read_text(encoding="utf-8"))))
    console = Console()
    wide = console if console.is_terminal else Console(width=10_000, file=console.file)  # a file has no width
    wide.print(grid)
    console.print(
        f"settings/...: parts that other recipes name as their base. And {tables} of the papers' tables and figures, "
        "each cell of them a recipe: kdstream tables",
        highlight=False,
        soft_wrap=True,
    )


def _here(text: str) -> str:
    """A recipe's text whose first line leads an editor to the schema that is installed, wherever the text goes."""
    from kdstream.recipe_file import RECIPES

    return re.sub(rf"^{re.escape(SERVER)}.*", lambda _: f"{SERVER}{RECIPES / 'recipe.schema.json'}", text)


def _title(text: str) -> str:
    """The first sentence of the comment at a file's head."""
    words: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(SERVER):
            words += line.removeprefix("#").split()
    return re.split(r"(?<=\.)(?<!al\.) ", " ".join(words), maxsplit=1)[0]
