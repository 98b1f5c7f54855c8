"""Reading a recipe's loss: what it accepts, and the one line that each mistake gets."""

from __future__ import annotations

import textwrap

import pytest
import torch
import yaml

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, Term, parse_loss
from kdstream.objectives.at import AttentionTransfer
from kdstream.objectives.ce import CrossEntropy
from kdstream.objectives.kd import KnowledgeDistillation


@pytest.fixture
def my_losses(tmp_path, monkeypatch):
    """A module outside the package, as a user writes it."""
    (tmp_path / "mine_for_parse_loss.py").write_text(
        textwrap.dedent(
            """
            from kdstream.objectives import Term

            class Scaled(Term):
                def __init__(self, scale, *, shift=0.0):
                    super().__init__()
                    self.scale, self.shift = scale, shift

                def forward(self, student, teacher, batch):
                    return self.scale * student.logits.mean() + self.shift

            class Bare(Term):
                pass

            class Anything(Term):
                def __init__(self, **settings):
                    super().__init__()
                    self.settings = settings

            def no_term():
                return None
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "mine_for_parse_loss"


def test_numbers_mappings_and_order():
    loss = parse_loss({"kd": {"weight": 0.9, "temperature": 3}, "ce": 0.1, "at": {"taps": ["block2"]}})
    assert [(name, weight) for name, weight, _ in loss] == [("kd", 0.9), ("ce", 0.1), ("at", 1.0)]
    assert [type(term) for _, _, term in loss] == [KnowledgeDistillation, CrossEntropy, AttentionTransfer]
    assert loss[0].term.temperature == 3
    assert loss[2].term.student_taps == ("block2",)


def test_a_recipe_in_yaml():
    loss = parse_loss(yaml.safe_load("ce:\nkd:\n  temperature: 2\n"))
    assert [(name, weight) for name, weight, _ in loss] == [("ce", 1.0), ("kd", 1.0)]
    assert loss[1].term.temperature == 2


def test_plain_text_is_one_term_of_weight_one():
    ((name, weight, term),) = parse_loss("kd")
    assert (name, weight, type(term)) == ("kd", 1.0, KnowledgeDistillation)


def test_the_mapping_is_not_changed():
    loss = {"kd": {"weight": 0.5, "temperature": 2}}
    parse_loss(loss)
    assert loss == {"kd": {"weight": 0.5, "temperature": 2}}


def test_every_short_name_is_a_term_that_stands_by_itself():
    for name in OBJECTIVES:
        ((_, weight, term),) = parse_loss(name)
        assert isinstance(term, Term)
        assert weight == 1


def test_dotted_path(my_losses):
    name = f"{my_losses}:Scaled"
    ((found, weight, term),) = parse_loss({name: {"weight": 2, "scale": 3, "shift": 1.0}})
    assert (found, weight) == (name, 2.0)
    batch = Batch(torch.zeros(1, 3, 1, 1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert term(Outputs(torch.ones(1, 2)), None, batch).item() == 4
    ((_, _, term),) = parse_loss(yaml.safe_load(f"{my_losses}:Anything: {{odd: 1, even: 2}}"))
    assert term.settings == {"odd": 1, "even": 2}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("kdd", "loss: unknown objective 'kdd': did you mean 'kd'?"),
        ({"ce": 1, "fitnets": 1}, "loss: unknown objective 'fitnets': did you mean 'fitnet'?"),
        ({"kd": {"temprature": 4}}, "loss.kd: unknown setting 'temprature': did you mean 'temperature'?"),
        ({"kd": {"wieght": 4}}, "loss.kd: unknown setting 'wieght': did you mean 'weight'?"),
        ({"ce": {"smoothing": 0.1}}, "loss.ce: unknown setting 'smoothing': known: weight"),
        ({"kd": {3: 4}}, "loss.kd: unknown setting 3: known: temperature, weight"),
        ({"kd": True}, "loss.kd: weight must be a finite number >= 0, got True"),
        ({"kd": float("nan")}, "loss.kd: weight must be a finite number >= 0, got nan"),
        ({"kd": float("inf")}, "loss.kd: weight must be a finite number >= 0, got inf"),
        ({"kd": -0.9}, "loss.kd: weight must be a finite number >= 0, got -0.9"),
        ({"kd": "much"}, "loss.kd: weight must be a finite number >= 0, got 'much'"),
        (
            {"kd": {"weight": "1e-3"}},
            "loss.kd: weight must be a finite number >= 0, got the text '1e-3' (remove the quotes; YAML reads 1e-3 as "
            "text, write 0.001)",
        ),
        ({"kd": {"weight": None}}, "loss.kd: weight must be a finite number >= 0, got None"),
        ({"kd": [0.9]}, "loss.kd: weight must be a finite number >= 0, got [0.9]"),
        ({"kd": {"temperature": 0}}, "kd: temperature must be a finite number > 0, got 0"),
        ({}, "loss is empty: name at least one objective, such as {ce: 1}"),
        (["ce", "kd"], "loss must map objectives to weights or settings, such as {ce: 0.1, kd: 0.9}; got ['ce', 'kd']"),
        (None, "loss must map objectives to weights or settings, such as {ce: 0.1, kd: 0.9}; got None"),
        ({4: 1}, "loss: the name of an objective must be text, got 4; known: "),
        ({"no_such_module:Loss": 1}, "loss: objective 'no_such_module:Loss': cannot import module 'no_such_module'"),
        ({"math:pi": 1}, "loss: objective 'math:pi': Python's standard library has no objectives"),
        ({"torch.nn:MSELoss": 1}, "loss.torch.nn:MSELoss: not a subclass of kdstream.objectives.Term, but <class"),
        ({"kd": 10**400}, "loss.kd: weight must be a finite number >= 0, got"),
        ({"at": {"p": 10**400}}, "at: p must be a whole number >= 1"),
        ({"ce": 0, "kd": 0}, "loss: every weight is 0"),
    ],
)
def test_mistakes(loss, message):
    with pytest.raises(UserError) as caught:
        parse_loss(loss)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attribute", "settings", "message"),
    [
        ("Scaled", {}, "needs a value for scale"),
        ("Scaled", {"scale": 1, "shfit": 2}, "unknown setting 'shfit': did you mean 'shift'?"),
        ("Bare", {"scale": 1}, "unknown setting 'scale': known: weight"),
        ("no_term", {}, "not a subclass of kdstream.objectives.Term, but <function no_term"),
        ("Scale", {}, "did you mean 'Scaled'?"),
    ],
)
def test_mistakes_about_own_terms(my_losses, attribute, settings, message):
    with pytest.raises(UserError) as caught:
        parse_loss({f"{my_losses}:{attribute}": settings})
    assert message in str(caught.value)
    assert f"{my_losses}:{attribute}" in str(caught.value)
