"""Optimizers by name: what they compute, which parameters decay, what a recipe may and may not say of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.recipe import Optimizer, make_recipe
from kdstream.training.optimizer import find_optimizer, groups_of, kinds_of, make_optimizer

HERE = Path(__file__).stem


class Signs(torch.optim.Optimizer):
    """Steps of one length, of somebody's own."""

    def __init__(self, params, lr, scale=1.0):
        if scale <= 0:
            raise ValueError(f"scale\nis {scale}")
        super().__init__(params, {"lr": lr, "scale": scale})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for one in group["params"]:
                one -= group["lr"] * group["scale"] * one.grad.sign()


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    sys.modules.pop(HERE, None)


def optimizer(**settings) -> Optimizer:
    recipe = {"data": {"path": "x"}, "student": "resnet8", "optimizer": settings}
    return make_recipe(recipe, "test").optimizer


def moved(weight: torch.Tensor, gradients: list[torch.Tensor], **settings) -> torch.Tensor:
    """A weight after these gradients."""
    module = nn.Linear(*weight.shape[::-1], bias=False, dtype=torch.float64)
    module.weight.data.copy_(weight)
    made = make_optimizer(optimizer(**settings), module, settings["lr"])
    for gradient in gradients:
        module.weight.grad = gradient.clone()
        made.step()
    return module.weight.detach()


def test_lamb_is_that_of_the_paper():
    """You et al. 2020 (arXiv:1904.00962), algorithm 2, with phi(z) = z."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(3)]
    x, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, g in enumerate(gradients, 1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        update = (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-6) + 0.1 * x
        x = x - 0.3 * x.norm() / update.norm() * update
    made = moved(start, gradients, name="lamb", lr=0.3, betas=[0.8, 0.95], weight_decay=0.1)
    torch.testing.assert_close(made, x)


def test_adamw_decays_beside_the_step():
    """Loshchilov & Hutter 2019 (arXiv:1711.05101), algorithm 2; its first step has length lr."""
    start = torch.tensor([[2.0, -3.0]], dtype=torch.float64)
    made = moved(start, [torch.tensor([[5.0, -0.1]], dtype=torch.float64)], name="adamw", lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(made, start * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([[1.0, -1.0]]).double())


def test_one_s_own_by_dotted_path():
    start = torch.tensor([[2.0, -3.0]], dtype=torch.float64)
    settings = {"name": f"{HERE}:Signs", "lr": 0.5, "options": {"scale": 2}}
    assert moved(start, [torch.tensor([[5.0, -0.1]]).double()], **settings).tolist() == [[1.0, -2.0]]


@pytest.mark.parametrize(
    ("name", "norms", "embeddings"),
    [
        ("resnet8", {"bn1.weight", "bn1.bias"}, set()),
        ("timm:deit_tiny_patch16_224", {"blocks.0.norm1.weight", "norm.bias"}, {"cls_token", "pos_embed"}),
        ("vit_b_16", {"encoder.ln.bias"}, {"class_token", "encoder.pos_embedding"}),
    ],
)
def test_kinds_of_parameters(name, norms, embeddings):
    with torch.device("meta"):
        network = build(name, 10)
    kinds = kinds_of(network)
    assert {one for one, kind in kinds.items() if "embedding" in kind} == embeddings
    assert norms <= {one for one, kind in kinds.items() if "norm" in kind}
    biases = {one for one in kinds if one.endswith("bias")}
    assert {one for one, kind in kinds.items() if "bias" in kind} == biases
    flat = {one for one, parameter in network.named_parameters() if parameter.dim() == 1}
    assert {one for one, kind in kinds.items() if kind} == flat | embeddings  # as timm: vectors and what it names


def test_no_decay_is_by_group():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(3, 2))
    module[0].bias.requires_grad_(False)
    pulled, spared = groups_of(module, ["norm", "bias"])
    assert [name for name, _ in pulled] == ["0.weight", "2.weight"]
    assert [name for name, _ in spared] == ["1.weight", "1.bias"]
    made = make_optimizer(optimizer(name="adamw", no_decay=["norm", "bias"], weight_decay=0.2), module, 0.1)
    assert [group["weight_decay"] for group in made.param_groups] == [0.2, 0.0]
    (group,) = make_optimizer(optimizer(no_decay=[]), module, 0.1).param_groups
    assert len(group["params"]) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamv"}, r"^test: optimizer: unknown optimizer 'adamv': did you mean 'adamw'\?, or a dotted path$"),
        (
            {"name": "adamw", "momentum": 0.9},
            r"^test: optimizer: adamw has no momentum; its settings are lr, betas, eps",
        ),
        ({"betas": [0.9, 0.99]}, r"^test: optimizer: sgd has no betas"),
        ({"name": "a:b"}, r"^test: optimizer: lr is missing: only sgd, adamw, lamb have a default$"),
        ({"name": "adamw", "betas": [0.9, 1]}, r"optimizer\.betas\.1: .*less than 1"),
        ({"no_decay": ["norms"]}, r"optimizer\.no_decay\.0: .*'norm', 'bias' or 'embedding'; it is 'norms'"),
        (
            {"name": f"{HERE}:Signs", "lr": 1, "options": {"scales": 1}},
            "no setting 'scales' there: did you mean 'scale'",
        ),
        ({"name": f"{HERE}:Signs", "lr": 1, "options": {"lr": 1}}, "no setting 'lr' there"),
        ({"name": f"{HERE}:Signs", "lr": 1, "no_decay": ["bias"]}, "has no weight_decay: leave it and no_decay out"),
        ({"name": f"{HERE}:Signs", "lr": 1, "options": {"scale": 0}}, r"^optimizer test_optimizer:Signs: scale is 0$"),
        ({"name": f"{HERE}:moved", "lr": 1}, "is no subclass of torch.optim.Optimizer"),
        ({"name": "torch.optim:LBFGS", "lr": 1}, "asks for the loss several times a step"),
        ({"name": "torch:load", "lr": 1}, "torch has no optimizer of that name"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(optimizer(**settings), nn.Linear(2, 2), 0.1)


def test_lamb_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(UserError, match=r"^optimizer lamb needs timm: pip install timm \("):
        find_optimizer(optimizer(name="lamb"))


def test_another_optimizer_replaces_the_first_as_a_whole():
    base = {"data": {"path": "x"}, "student": "resnet8", "optimizer": {"lr": 0.1, "momentum": 0.8, "clip": 5}}
    runs = {"adamw": {"optimizer": {"name": "adamw"}}, "slow": {"optimizer": {"lr": 0.01}}}
    recipe = make_recipe({**base, "runs": runs}, "test")
    adamw, slow = (recipe.variant(recipe.runs[name], name, "test").optimizer for name in ("adamw", "slow"))
    assert (adamw.lr, adamw.betas, adamw.momentum, adamw.clip) == (1e-3, (0.9, 0.999), None, None)
    assert (slow.lr, slow.momentum, slow.clip) == (0.01, 0.8, 5)
