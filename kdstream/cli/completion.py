"""``kdstream completion``: a script that lets bash, zsh or fish complete verbs, options, recipes and settings."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
from collections.abc import Iterable, Sequence

from kdstream.cli.frame import CommandParser, command_parser, run_command

EXAMPLES = """examples:
  kdstream completion bash >> ~/.bashrc
  kdstream completion zsh >> ~/.zshrc
  kdstream completion fish > ~/.config/fish/completions/kdstream.fish
"""
BASH = """_kdstream() {{
  local words
  if [ "$COMP_CWORD" -le 1 ]; then
    words="{verbs}"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
  case "${{COMPREPLY[0]}}" in *=) compopt -o nospace;; esac
}}
complete -o default -F _kdstream kdstream
"""
"""bash keeps ``=`` in its words apart, so settings are completed up to it. Files are completed where no word fits."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(_parser, _run, arguments)


def _parser() -> CommandParser:
    parser = command_parser("completion", __doc__, EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


def _run(options: argparse.Namespace) -> None:
    print(script(options.shell), end="")


def script(shell: str) -> str:
    """The script of a shell; words are those of the kdstream that is installed now."""
    from kdstream.cli import VERBS

    found = words()
    if shell == "fish":
        lines = ["complete -c kdstream -n __fish_use_subcommand -f"]
        for verb, what in VERBS.items():
            lines.append(f"complete -c kdstream -n __fish_use_subcommand -a {verb} -d {_quoted(what)}")
            for word in found[verb]:
                kind = f"-l {word[2:]}" if word.startswith("--") else f"-a {_quoted(word)}"
                lines.append(f"complete -c kdstream -n '__fish_seen_subcommand_from {verb}' {kind}")
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'      {verb}) words="{" ".join(own)}";;' for verb, own in found.items())
    text = BASH.format(verbs=" ".join(VERBS), cases=cases)
    return text if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{text}"


def words() -> dict[str, list[str]]:
    """What may follow each verb: its options and, where it takes them, recipes and a recipe's settings."""
    from kdstream.cli import VERBS
    from kdstream.recipe import Recipe
    from kdstream.recipe_file import known_recipes

    recipes = [name for name in known_recipes() if not name.startswith("settings/")]
    tables = [name for name in recipes if "/" in name and not name.startswith("claims/")]
    settings = [f"{name}=" for name in Recipe.model_fields]
    further = {
        "train": [*recipes, *settings],
        "compare": [*recipes, *settings],
        "table": [*tables, *settings],
        "report": tables,
        "tables": tables,
        "recipes": recipes,
    }
    return {verb: [*_options(verb), *further.get(verb, ())] for verb in VERBS}


def _options(verb: str) -> Iterable[str]:
    """The long options that a verb's help names."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        importlib.import_module(f"kdstream.cli.{verb}").main(["--help"])
    return dict.fromkeys(re.findall(r"^  (?:-\w, )?(--[a-z][a-z-]*)", output.getvalue(), re.MULTILINE))


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
