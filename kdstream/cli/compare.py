"""``kdstream compare``: which method serves these images best, and whether the difference is real."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdstream.cli.frame import CommandParser, MixedParser, command_parser, find_own_modules, run_command
from kdstream.cli.table import estimate, positive, train_all
from kdstream.errors import UserError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from kdstream.data.shards import ShardSet
    from kdstream.recipe import Recipe
    from kdstream.training.comparing.contest import Contest, Training
    from kdstream.training.comparing.findings import Found
    from kdstream.training.comparing.methods import Method
    from kdstream.training.comparing.setting import Setting
    from kdstream.training.comparing.tuning import Trial

EXAMPLES = """examples:
  kdstream compare shards/birds --teacher resnet34 --student resnet18
  kdstream compare shards/birds --teacher resnet34 --student resnet18 --methods kd,ckd,crd --seeds 3 epochs=40 --dry-run
  kdstream compare my_recipe.yaml --methods dist,dkd --tune loss.kd.temperature=1,4,12 optimizer.lr=0.05,0.1

A method is an objective (kdstream objectives) or a published loss, as dkd+cmkd or ttm/wttm/cifar100/vgg13-vgg8, with
its published settings; coded:NAME, or cNAME where no objective is called so (ckd, cat), has the coded teacher. Labels
only and kd are always there. Ctrl-C, and the same command goes on; more seeds or methods add to what is there.
"""
KEPT = "what is trained is saved; the same command continues"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments, KEPT)


def _parser() -> CommandParser:
    parser = command_parser("compare", __doc__, EXAMPLES, MixedParser)
    parser.add_argument(
        "place", metavar="DATA", help="a folder of shards, or a recipe: its data, networks and schedule"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for all, as epochs=40")
    parser.add_argument(
        "--teacher", metavar="NAME", help="a network to be trained, or weights: file, folder, published:"
    )
    parser.add_argument("--student", metavar="NAME", help="a network")
    parser.add_argument("--methods", default="kd,ckd,wttm,dkd,dist", metavar="A,B", help="default: %(default)s")
    parser.add_argument("--seeds", type=positive, metavar="N", help="students of each method (default: 5)")
    parser.add_argument("--delta", type=int, default=5, metavar="D", help="between the qualities of coded (default: 5)")
    parser.add_argument(
        "--tune",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=A,B",
        help="values to try for a setting, on a tenth of the training split that is held out; equally many trials for "
        "each method that has it",
    )
    parser.add_argument("--trials", type=positive, metavar="N", help="of each method, at most")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="trainings at a time (default: 1)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/compare-DATA-TEACHER-STUDENT")
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do and how long it takes")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser


def run(arguments: Sequence[str]) -> None:
    """What the command does with these arguments, for callers in Python.

    Raises:
        UserError: what the command would say.
    """
    options = _parser().parse_args(list(arguments))
    options.command = arguments
    _run(options)


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console

    from kdstream.display.progress import Display
    from kdstream.training.accelerator import make_accelerator
    from kdstream.training.comparing.contest import Contest
    from kdstream.training.comparing.methods import find_methods
    from kdstream.training.comparing.setting import completed, need_place, need_terms, read_setting
    from kdstream.training.comparing.tuning import SHARE, split_fixed, trials_of
    from kdstream.training.job import Job

    console = Console(highlight=False)
    tuned, fixed = split_fixed(options.tune)
    overrides = [*options.overrides, *fixed]
    setting = read_setting(options.place, options.teacher, options.student, overrides, options.delta)
    need_place(setting, options.place)
    names = [name for name in options.methods.split(",") if name.strip()]
    find_methods(names, setting.teacher, setting.student, False)  # a wrong name is said before anything is read
    display = Display(enabled=False)
    accelerator = make_accelerator(options.cpu, setting.settings.get("precision"))
    plain = find_methods([], setting.teacher, setting.student, False)[0]
    first = setting.recipe(plain)
    display = Display(console=console) if first.data.source and not Path(first.data.path).is_dir() else display
    train, val = Job(first, accelerator, display).data()
    setting = completed(setting, train.image_size)
    methods = find_methods(names, setting.teacher, setting.student, setting.photographs)
    need_terms(setting, methods)
    trials = trials_of(methods, setting, tuned, options.trials) if tuned else {}
    base = setting.recipe(plain)
    count = options.seeds or 5
    seeds = list(range(base.seed, base.seed + count))
    contest = Contest(options.out or Path("runs") / _folder(setting), train)
    _introduce(console, setting, methods, seeds, train, val)
    held: dict[str, list[Training]] = {}
    if trials:
        aside = setting.held_out(SHARE)
        halves = Job(aside.recipe(plain), accelerator, Display(enabled=False)).data()
        small = Contest(contest.out, halves[0])
        held = {
            method.name: [small.training(method, aside, base.seed, trial) for trial in trials[method.name]]
            for method in methods
            if method.name in trials
        }
        budget = len(next(iter(held.values())))
        _say(
            console,
            f"tuning: {budget} trials each for {', '.join(held)}, by {len(halves[1]):,} training images held out",
        )
        if rest := [method.name for method in methods if method.name not in held]:
            _say(console, f"  {', '.join(rest)}: nothing of it is tuned, so the others have an advantage over it")
        everything = [one for some in held.values() for one in some]
        if not _finish(console, options, small, everything, halves, accelerator, "tuning"):
            _say(console, f"then {len(methods)} methods x {count} seeds with the best settings")
            return
        reached = _evaluate(console, everything, halves[1], accelerator.device)
    chosen: dict[str, dict[Trial, dict[str, Any]]] = {
        name: {one.trial: reached[str(one.recipe.out)] for one in some} for name, some in held.items()
    }
    best = {method.name: _best(console, method, chosen) for method in methods}
    students = {
        method.name: [contest.training(method, setting, seed, best[method.name]) for seed in seeds]
        for method in methods
    }
    everything = [students[method.name][i] for i in range(count) for method in methods]  # early on, seeds are alike
    try:
        if not _finish(console, options, contest, everything, (train, val), accelerator, "comparison"):
            return
    except UserError:
        _report(console, options, contest, setting, methods, best, chosen, students, val, accelerator.device)
        raise
    _report(console, options, contest, setting, methods, best, chosen, students, val, accelerator.device)


def _say(console: Console, line: str) -> None:
    from kdstream.terminal import visible

    console.print(visible(line), markup=False, soft_wrap=True)


def _folder(setting: Setting) -> str:
    import re

    names = [setting.name, *(Path(name.removeprefix("published:")).stem for name in (setting.teacher, setting.student))]
    return re.sub(r"[^\w.+-]+", "_", "-".join(["compare", *names]))


def _introduce(
    console: Console, setting: Setting, methods: Sequence[Method], seeds: Sequence[int], train: ShardSet, val: ShardSet
) -> None:
    _say(
        console,
        f"{setting.teacher} -> {setting.student} on {train.name}: {len(train):,} training images, {len(val):,} of "
        f"{val.split}",
    )
    for note in setting.notes:
        _say(console, f"  {note}")
    for method in methods:
        _say(console, f"  {method.name}: {method.source}")
    if len(seeds) == 1:
        _say(console, "  one seed decides nothing: it shows no spread")


def _finish(
    console: Console,
    options: argparse.Namespace,
    contest: Contest,
    trainings: Sequence[Training],
    data: tuple[ShardSet, ShardSet],
    accelerator: Any,
    what: str,
) -> bool:
    """Train what is left, or say what that is where no more is asked for; whether all is done.

    Raises:
        UserError: a training is impossible, or failed.
    """
    from kdstream.training.comparing.contest import LOGS, try_all

    tasks = contest.left(trainings)
    epochs = sum(task.epochs for task in tasks)
    teachers = sum(task.gives is not None for task in tasks)
    left = f"{len(tasks)} left, {teachers} of them teachers', {epochs:,} epochs" if tasks else "all done"
    _say(console, f"{what}: {len(trainings)} trainings of students: {left}")
    if not tasks:
        return True
    undone: dict[str, Recipe] = {}
    for one in (one for one in trainings if not contest.done(one)):
        undone.setdefault(one.method.name, one.recipe.model_copy(update={"name": one.method.name}))
    with console.status("trying every method") as status:
        try_all(undone, *data, accelerator, status.update)
    if options.dry_run:
        estimate(console, tasks, options.cpu)
        return False
    contest.write_recipes(tasks, trainings)
    try:
        train_all(console, tasks, options.jobs, ["--cpu"] if options.cpu else [], contest.out / LOGS)
    finally:
        contest.look()
    return True


def _evaluate(
    console: Console, trainings: Sequence[Training], val: ShardSet, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Folder of each finished training -> what its exported student reaches."""
    from kdstream.bars import progress_bars
    from kdstream.training.comparing.contest import evaluated

    found = {}
    with progress_bars(console) as progress:
        bar = progress.add_task("calibration", total=len(val) * len(trainings))
        for one in trainings:
            found[str(one.recipe.out)] = evaluated(one, val, device, lambda count: progress.advance(bar, count))
    return found


def _best(console: Console, method: Method, chosen: dict[str, dict[Trial, dict[str, Any]]]) -> Trial:
    from kdstream.training.comparing.tuning import best_trial

    if method.name not in chosen:
        return ()
    best = best_trial(chosen[method.name])
    _say(console, f"  {method.name}: {' '.join(best)} ({chosen[method.name][best]['top1']:.2f} % of what is held out)")
    return best


def _report(
    console: Console,
    options: argparse.Namespace,
    contest: Contest,
    setting: Setting,
    methods: Sequence[Method],
    best: dict[str, Trial],
    chosen: dict[str, dict[Trial, dict[str, Any]]],
    students: dict[str, list[Training]],
    val: ShardSet,
    device: torch.device,
) -> None:
    """Write compare.json, .md and .html, and print the same."""
    import json
    import platform
    import shlex
    import sys

    import torch

    import kdstream
    from kdstream.addresses import public
    from kdstream.atomic import write_atomic, writing
    from kdstream.display.compare_page import grids, to_html, to_markdown
    from kdstream.training.comparing.findings import Found, as_json, page, tops

    done = [one for some in students.values() for one in some if contest.done(one)]
    reached = _evaluate(console, done, val, device)
    found: list[Found] = [
        Found(
            method,
            best[method.name],
            chosen.get(method.name, {}),
            {
                one.recipe.seed: reached[str(one.recipe.out)]
                for one in students[method.name]
                if str(one.recipe.out) in reached
            },
        )
        for method in methods
    ]
    if not tops(found):
        return
    command = shlex.join(["kdstream", "compare", *map(public, vars(options).get("command", sys.argv[2:]))])
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    facts = [
        ("command", command),
        ("machine", f"{machine}, {options.jobs} training(s) at a time"),
        ("versions", f"kdstream {kdstream.__version__}, torch {torch.__version__}, Python {platform.python_version()}"),
    ]
    title = f"{setting.teacher} -> {setting.student} on {val.name}"
    recipe = students[methods[0].name][0].recipe
    about = (
        f"{len(contest.train):,} training images of {contest.train.num_classes} classes, {len(val):,} of {val.split}; "
        f"{recipe.epochs} epochs, batch {recipe.batch_size}"
    )
    shown = page(found, title, about, facts, setting.notes)
    plain = {
        "title": title,
        "about": about,
        "command": command,
        "coded_stage": setting.coded,
        "notes": list(setting.notes),
    }
    texts = {
        "compare.html": to_html(shown),
        "compare.md": to_markdown(shown),
        "compare.json": json.dumps(as_json(found, plain), indent=2) + "\n",
    }
    with writing(contest.out):
        contest.out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomic(contest.out / name, text.encode("utf-8", "replace"))
    console.print()
    for grid in grids(shown):
        console.print(grid)
        console.print()
    for sentence in shown.conclusions:
        console.print(f"- {sentence}", markup=False)
    _say(console, f"written: {contest.out}/compare.html, .md, .json")
