"""recompute: less is kept, gradients and statistics are the same, and nothing else notices."""

from __future__ import annotations

import copy

import pytest
import torch
from jobs import recipe_of, run
from safetensors.torch import load_file
from tiny_vit import TinyViT
from torch import nn

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.training.recompute import checkpoint_blocks


def dropping() -> nn.Module:
    network = TinyViT(10)
    for block in network.blocks:
        block.dropout.p = 0.5
    return network


NETWORKS = {
    "resnet14": (lambda: build("resnet14", 10), ["block1", "block2.pre", "penultimate"], "layer1.0.conv1"),
    "vgg8": (lambda: build("vgg8", 10), ["block2", "penultimate"], "block0.0"),
    "vit": (dropping, ["tokens.1", "tokens.last"], "blocks.0.linear1"),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_same_gradients_and_statistics(name):
    make, taps, inner = NETWORKS[name]
    first = inner.rpartition(".")[0]
    torch.manual_seed(0)
    plain = make().train()
    again = copy.deepcopy(plain)
    keys = list(again.state_dict())
    assert checkpoint_blocks(again)[0] == first
    assert list(again.state_dict()) == keys
    images, kept = torch.randn(4, 3, 16, 16), {}
    for network in (plain, again):
        calls, bytes_kept = [], [0]
        network.get_submodule(first).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        network.get_submodule(inner).register_forward_pre_hook(lambda *_, calls=calls: calls.append(2))

        def pack(tensor, held=bytes_kept):
            held[0] += tensor.nbytes
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = Tapped(network, taps)(images)
        loss = outputs.logits.square().mean() + sum(value.square().mean() for value in outputs.features.values())
        loss.backward()
        kept[network] = bytes_kept[0], calls
    assert kept[plain][1] == [1, 2]
    assert kept[again][1] == [1, 2, 2], "the inside is computed again"
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad.equal(other.grad)
    assert all(value.equal(again.state_dict()[key]) for key, value in plain.state_dict().items())
    plain.eval(), again.eval()
    with torch.no_grad():
        assert plain(images).equal(again(images))
    if name == "resnet14":
        assert again.layer1[0].bn1.num_batches_tracked == 1
        assert kept[again][0] < kept[plain][0] / 2


def test_what_has_no_blocks_is_told():
    with pytest.raises(UserError, match="checkpoint_gradients: Linear has no blocks"):
        checkpoint_blocks(nn.Linear(3, 3))


def test_a_training_ends_with_the_same_bits(digits, tmp_path):
    results = []
    for checkpointed in (False, True):
        out = tmp_path / str(checkpointed)
        run(recipe_of(digits, out, epochs=1, ema=0.9, checkpoint_gradients=checkpointed, export_all=True))
        results.append([load_file(out / place / "student.safetensors") for place in (".", "peers/ema")])
    for plain, again in zip(*results, strict=True):
        assert plain.keys() == again.keys()
        assert all(plain[key].equal(again[key]) for key in plain)
