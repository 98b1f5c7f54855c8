"""Recipe schema: what a recipe may say as JSON Schema, by which editors complete and check YAML."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel

from kdstream.models import MODELS
from kdstream.models.published import known as published
from kdstream.objectives import OBJECTIVES
from kdstream.objectives.presets import presets, term_presets
from kdstream.recipe import OPTIMIZERS, Recipe

SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """The schema of recipe files, of their bases and of the parts ``runs`` and ``teacher.train``.

    Nothing is required, because a base may say it; what belongs together is checked when a recipe is read. Networks,
    objectives and optimizers are completed, and any text is right: it may be a dotted path.
    """
    schema = Recipe.model_json_schema()
    groups = {"Recipe": schema, **schema["$defs"]}
    for kind in _all_groups(Recipe):
        part = groups[kind.__name__]
        part.pop("required", None)
        part["description"] = _first_paragraph(inspect.getdoc(kind) or "")
        for name, text in described(kind).items():
            part["properties"][name]["description"] = text
    again = {"$ref": "#"}
    networks = [*MODELS, *(f"published:{name}" for name in published())]
    for name in ("Model", "OneTeacher", "Teacher", "Assistant"):
        groups[name]["properties"]["model"] = _or_text(list(MODELS), groups[name]["properties"]["model"])
        if "train" in groups[name]["properties"]:
            groups[name]["properties"]["train"] = {**_about(groups[name]["properties"]["train"]), **again}
    groups["Optimizer"]["properties"]["name"] = _or_text(list(OPTIMIZERS), groups["Optimizer"]["properties"]["name"])
    settings = schema["properties"]
    for name in ("teacher", "student"):
        group = "Teacher" if name == "teacher" else "Model"
        settings[name] = {**_about(settings[name]), "anyOf": [*_words(networks), {"$ref": f"#/$defs/{group}"}]}
    one = [*_words(networks), {"$ref": "#/$defs/OneTeacher"}]
    several = {"type": "array", "items": {"anyOf": one}}
    settings["teacher"]["anyOf"].append(several)
    groups["Teacher"]["properties"]["others"] = {**_about(groups["Teacher"]["properties"]["others"]), **several}
    one = [*_words(networks), {"$ref": "#/$defs/Assistant"}]
    settings["assistants"] = {
        **_about(settings["assistants"]),
        "anyOf": [*one, {"type": "array", "items": {"anyOf": one}}],
    }
    settings["loss"] = {**_about(settings["loss"]), "anyOf": [*_words(list(OBJECTIVES)), _terms()]}
    settings["precision"] = {**_about(settings["precision"]), "enum": [False, "no", "bf16", "fp16"]}
    settings["runs"] = {**_about(settings["runs"]), "type": "object", "additionalProperties": again}
    settings["base"] = {
        "description": "files that this one builds on, as settings/cifar100; the last one wins",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    settings["coded"] = {"description": "for tables: the stage of coded rows, as coded(hkl, delta=5)", "type": "string"}
    return {"$schema": SCHEMA, **_in_its_words(schema), "title": "kdstream recipe"}


_WORDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""pydantic's name of a bound behind a check of ours -> JSON Schema's."""


def _in_its_words(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_in_its_words(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    bounded = schema.get("type") in ("integer", "number")
    return {_WORDS.get(key, key) if bounded else key: _in_its_words(one) for key, one in schema.items()}


def described(kind: type[BaseModel]) -> dict[str, str]:
    """Setting -> what the docstrings of its class, and of those that it builds on, say of it."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if issubclass(one, BaseModel) and "__doc__" in vars(one):
            found |= _attributes(inspect.getdoc(one) or "")
    return {name: text for name, text in found.items() if name in kind.model_fields}


def _attributes(doc: str) -> dict[str, str]:
    """The section "Attributes:" of a docstring; a line of several names says the same of each."""
    _, _, section = doc.partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        head = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if head:
            names = head[1].split(", ")
            found |= dict.fromkeys(names, head[2])
        elif line.startswith("        "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return {name: _plain(text) for name, text in found.items()}


def _plain(text: str) -> str:
    """A docstring's text without its markup."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")


def _first_paragraph(doc: str) -> str:
    return _plain(" ".join(doc.split("\n\n")[0].split()).removesuffix(", and"))


def _all_groups(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """A group of settings and those within it."""
    found = [kind]
    for field in kind.model_fields.values():
        for one in inner_groups(field.annotation):
            found += [inner for inner in _all_groups(one) if inner not in found]
    return found


def inner_groups(annotation: Any) -> list[type[BaseModel]]:
    """The groups of settings that a setting's type names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in getattr(annotation, "__args__", ()) for kind in inner_groups(inner)]


def _about(one: dict[str, Any]) -> dict[str, Any]:
    return {key: one[key] for key in ("description",) if key in one}


def _words(words: list[str]) -> list[dict[str, Any]]:
    return [{"enum": words}, {"type": "string"}]


def _or_text(words: list[str], one: dict[str, Any]) -> dict[str, Any]:
    return {**_about(one), "anyOf": [*_words(words), {"type": "null"}]}


def _terms() -> dict[str, Any]:
    """A loss of several terms: a weight, or a group with the term's settings."""
    terms = {}
    for name in OBJECTIVES:
        term = OBJECTIVES.find(name)
        given = [] if "__init__" not in vars(term) else list(inspect.signature(term).parameters)
        own: dict[str, Any] = {"weight": {"description": "of the term in the sum", "type": "number"}}
        own |= {one: {} for one in given}
        if short := list(term_presets(name)):
            own["preset"] = {"description": "published settings", "anyOf": _words(short)}
        what = (inspect.getdoc(inspect.getmodule(term)) or "").splitlines()[0]
        terms[name] = {
            "description": what,
            "anyOf": [
                {"type": ["number", "null"]},
                {"type": "object", "properties": own, "additionalProperties": False},
            ],
        }
    terms["preset"] = {"description": "a published loss", "anyOf": _words(list(presets()))}
    return {"type": "object", "properties": terms}
