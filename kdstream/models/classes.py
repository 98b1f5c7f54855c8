"""Which of a trained network's outputs stand for which classes of a data set: compared by name, and put in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from kdstream.errors import UserError
from kdstream.models import build, is_dotted
from kdstream.notes import about_of, architecture, note, spec_of

Choice = Literal["same"] | Sequence[int | str] | None
"""What a user says of a network's outputs: those of the data's classes, in this order, by number (from 0) or by name;
"same": they stand for the data's classes as they are, whatever they are called; None: nothing, the names tell."""

_CODE = re.compile(r"n\d{8}")  # WordNet's, as ImageNet's folders are called
_SIZES = ("out_features", "out_channels", "num_features", "num_classes")


def fit_classes(
    network: nn.Module,
    classes: Sequence[str],
    choice: Choice = None,
    *,
    what: str,
    option: str,
    count_option: str,
    sure: bool = True,
) -> str | None:
    """Let a trained network answer for the classes of a data set, in their order.

    The layers whose rows are classes are changed in the network itself: whatever reads its logits, its classifier, its
    ``spec``, its ``classes`` or the hash of its weights sees the same. A network that fits is left as it is.

    Args:
        network: as :func:`kdstream.models.pretrained.load_network` gives it.
        classes: names of the data's C classes; "0", "1", ... where it only numbers them.
        choice: see :data:`Choice`.
        what: names the weights in messages.
        option, count_option: what a user calls ``choice``, and the number of the data's classes.
        sure: the network's class names are its own; False: they are those that its library gives to a data set which
            others name otherwise, so names that do not fit prove nothing.

    Returns:
        What a user should know, in one line; None: nothing.

    Raises:
        UserError: other classes, another number of them, a choice that fits neither network nor data; a network whose
            outputs cannot be put in another order.
    """
    about, count = about_of(network), spec_of(network)["num_classes"]
    theirs = about["classes"]
    if theirs is not None and len(theirs) != count:
        theirs = None
    numbers, told = choose_outputs(theirs, count, classes, choice, what, option, count_option, sure)
    if numbers is not None and numbers != list(range(count)):
        _select(network, numbers, what)
    if numbers is not None:
        about["classes"] = list(classes)
        if hasattr(network, "classes"):
            note(network, classes=about["classes"])
    return told


def choose_outputs(
    theirs: Sequence[str] | None,
    count: int,
    ours: Sequence[str],
    choice: Choice,
    what: str,
    option: str,
    count_option: str,
    sure: bool = True,
) -> tuple[list[int] | None, str | None]:
    """The outputs that stand for the data's classes, in the data's order (None: all as they are), and what a user
    should know. See :func:`fit_classes`; ``theirs`` are the names of a network's ``count`` outputs, if known."""
    if choice == "same":
        if count != len(ours):
            raise UserError(
                f"{what} is for {count} classes, the data has {len(ours)}: they are not the same; {option}=[...] says "
                "which of its outputs stand for the data's classes"
            )
        moved = _moved(theirs or (), ours)
        doubt = f"{what}: {option}=same, though {moved}" if moved else None
        return list(range(count)), doubt
    if choice is not None:
        return _chosen(theirs, count, ours, choice, what, option, count_option)
    numbered = [theirs is None or are_numbers(theirs), are_numbers(ours)]
    numbers = None if theirs is None or all(numbered) else _by_name(theirs, ours)
    if numbers is None and any(numbered):
        if count != len(ours):
            raise UserError(_other_count(count, ours, what, option, count_option))
        if theirs is None or all(numbered):
            return None, None
        names = (
            f"the data's classes have names ({_some(ours)}), its own are only numbers"
            if numbered[0]
            else f"its classes have names ({_some(theirs)}), the data's are only numbers"
        )
        return None, (
            f"{what}: {names}: they cannot be compared and are taken to be in the same order ({option}=[...] says "
            f"another, {option}=same confirms it)"
        )
    assert theirs is not None
    if numbers is None:
        return None, _unequal(theirs, count, ours, what, option, sure)
    if numbers == list(range(count)):
        return None, None
    if len(numbers) == count:
        order = f"its classes stand in another order ({_some(theirs)}) than the data's ({_some(ours)})"
        return numbers, f"{what}: {order}: its outputs are put in the data's order, by name"
    return numbers, (
        f"{what}: {_count(len(ours))} of its {count} are the data's, by name ({_pairs(numbers, ours)}); its other "
        "outputs are left out"
    )


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the names are only the classes' numbers: "0", "1", "2", ... (or "00", "01", ...) in this order."""
    return all(name.isascii() and name.isdigit() and int(name) == number for number, name in enumerate(names))


def _chosen(
    theirs: Sequence[str] | None,
    count: int,
    ours: Sequence[str],
    choice: Sequence[int | str],
    what: str,
    option: str,
    count_option: str,
) -> tuple[list[int], str | None]:
    if len(choice) != len(ours):
        numbered = f"; where its labels are numbers among the {count} of {what}, leave {option} out and set "
        raise UserError(
            f"{option} has {len(choice)} entries, the data has {_count(len(ours))} ({_some(ours)}): give one for each "
            "of the data's classes, in this order"
            + (f"{numbered}{count_option}={count}" if are_numbers(ours) and len(ours) < count else "")
        )
    numbers = []
    for wanted in choice:
        if isinstance(wanted, int):
            if not 0 <= wanted < count:
                raise UserError(f"{option}: {wanted} is none of the outputs of {what}: they are 0 to {count - 1}")
            numbers.append(wanted)
            continue
        found = _by_name(theirs or (), [wanted])
        if found is None:
            known = f"its classes are {_some(theirs, 5)}" if theirs else "it names none: give numbers"
            raise UserError(f"{option}: {wanted!r} is no class of {what} alone; {known}")
        numbers += found
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise UserError(f"{option}: output {twice} of {what} stands for two of the data's classes: name each once")
    if numbers == list(range(count)):
        return numbers, None
    return numbers, f"{what}: its outputs as {option} says: {_pairs(numbers, ours, theirs)}"


def _by_name(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Position of each of our names among theirs; written alike if not equal. None: one is missing or ambiguous."""
    for form in (str, _plain):
        there, here = [form(name) for name in theirs], [form(name) for name in ours]
        if there == here:
            return list(range(len(here)))
        places = {name: number for number, name in enumerate(there)}
        unique = len(set(here)) == len(here) and (len(places) == len(there) or all(there.count(n) == 1 for n in here))
        if unique and places.keys() >= set(here):
            return [places[name] for name in here]
    return None


def _moved(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """The first name that both have, at different places; "" where there is none."""
    places = {_plain(name): number for number, name in reversed(list(enumerate(theirs)))}
    for number, name in enumerate(ours):
        place = places.get(_plain(name), number)
        if place != number and number < len(theirs) and _plain(theirs[number]) != _plain(name):
            return f"{_some([name])} is its output {place}, but the data's class {number}"
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip() or name


def _unequal(theirs: Sequence[str], count: int, ours: Sequence[str], what: str, option: str, sure: bool) -> str:
    """What to say of names that do not fit, where that proves nothing.

    Raises:
        UserError: other classes.
    """
    codes = [all(map(_CODE.fullmatch, names)) for names in (theirs, ours)]
    if count == len(ours) and (not sure or codes[0] != codes[1]):
        return (
            f"{what}: its classes ({_some(theirs)}) are called otherwise than the data's ({_some(ours)}): taken to be "
            f"the same in the same order ({option}=[...] says another, {option}=same confirms it)"
        )
    known, own = {_plain(name) for name in theirs}, {_plain(name) for name in ours}
    missing = [name for name in ours if _plain(name) not in known]
    other = [name for name in theirs if _plain(name) not in own]
    if missing:
        difference = f"{_some(missing)} of the data's {_count(len(ours))} are unknown to it"
        difference += f", it has {_some(other)}" if other else ""
    else:
        difference = "several have the same name"
    moved = _moved(theirs, ours)
    same = f", or {option}=same where only the names differ" if count == len(ours) and not moved else ""
    difference += f"; {moved}" if moved and count == len(ours) else ""
    raise UserError(
        f"{what} is for other classes than the data: {difference}; say which of its {count} outputs stand for the "
        f"data's classes, in the data's order, by {option}=[...] (names or numbers){same}"
    )


def _other_count(count: int, ours: Sequence[str], what: str, option: str, count_option: str) -> str:
    text = f"{what} is for {count} classes, the data has {len(ours)}"
    if count < len(ours):
        return f"{text} ({_some(ours)}): it must know all of them"
    ways = f"say which of its outputs stand for them, in the data's order, by {option}=[...]"
    if are_numbers(ours):
        text += f" (0 to {len(ours) - 1})"
        ways = f"where the data's labels are numbers among the {count}, set {count_option}={count}; else {ways}"
    return f"{text}: {ways}"


# ---- the network


def _select(network: nn.Module, numbers: Sequence[int], what: str) -> None:
    """Keep these outputs, in this order: rows of the tensors whose length follows the number of classes."""
    count: int = spec_of(network)["num_classes"]
    index = torch.tensor(numbers)
    for key in _class_tensors(network, count, what):
        path, _, leaf = key.rpartition(".")
        owner = network.get_submodule(path)
        old = getattr(owner, leaf)
        new = old.detach()[index.to(old.device)].clone()
        setattr(owner, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        _resize(owner, count, len(numbers))
    _resize(network, count, len(numbers))
    spec = {**spec_of(network), "num_classes": len(numbers)}
    note(network, spec=spec)
    about_of(network)["spec"] = spec


def _resize(module: nn.Module, old: int, new: int) -> None:
    for name in _SIZES:
        if module.__dict__.get(name) == old:
            setattr(module, name, new)


def _class_tensors(network: nn.Module, count: int, what: str) -> list[str]:
    """State keys of the tensors that have a row for each class, by what differs in a network of one class more.

    Raises:
        UserError: none, or one that follows the number of classes otherwise.
    """
    own = {key: list(value.shape) for key, value in network.state_dict().items()}
    more = {key: list(value.shape) for key, value in _twin({**spec_of(network), "num_classes": count + 1}).items()}
    changed = [key for key in own if key in more and own[key] != more[key]]
    fits = own.keys() <= more.keys() and all(more[key] == [count + 1, *own[key][1:]] for key in changed)
    if not changed or not fits or any(own[key][0] != count for key in changed):
        raise UserError(
            f"{what}: its outputs cannot be put in another order or be left out, since no layer of "
            f"{architecture(network)} has one row for each class; number the data's classes as it does"
        )
    return changed


def _twin(spec: dict) -> dict[str, torch.Tensor]:
    """State of a fresh network; random states stay as they are."""
    with torch.random.fork_rng([]):
        if not is_dotted(spec["name"]):
            try:
                with torch.device("meta"):
                    return build(**spec).state_dict()
            except NotImplementedError:  # it takes data to build it, as torchvision's RegNets
                pass
        return build(**spec).state_dict()


# ---- words


def _count(number: int) -> str:
    return f"{number} class" if number == 1 else f"{number} classes"


def _some(names: Sequence[str], shown: int = 3) -> str:
    """The first few names, so that nothing in them acts on a terminal."""
    quoted = [repr(name if len(name) <= 40 else f"{name[:37]}...") for name in names[:shown]]
    return ", ".join([*quoted, "..."] if len(names) > shown else quoted)


def _pairs(numbers: Sequence[int], ours: Sequence[str], theirs: Sequence[str] | None = None, shown: int = 3) -> str:
    """The first few of the data's classes, each with the output that stands for it."""
    parts = []
    for number, name in list(zip(numbers, ours, strict=True))[:shown]:
        called = f" {_some([theirs[number]])}" if theirs is not None and not are_numbers(theirs) else ""
        parts.append(f"{_some([name])} = output {number}{called}")
    return ", ".join([*parts, "..."] if len(ours) > shown else parts)
