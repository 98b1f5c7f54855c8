"""Networks from files, asked with pixels."""

from __future__ import annotations

import pytest
import torch

from kdstream.analysis.asked import gather, load_asked
from kdstream.analysis.one_pass import one_pass
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.models.export import save_student
from kdstream.stream.normalize import standardise


def test_an_export_is_asked_with_its_own_mean(network, digits, tmp_path):
    save_student(tmp_path / "net", network, mean=(0.3,) * 3, std=(0.2,) * 3)
    data = open_shards(digits / "val")
    asked = load_asked("net", str(tmp_path / "net"), data, "cpu")
    (logits,), label = gather([asked], one_pass(data, limit=7, batch_size=4))
    image = torch.cat([one.image for one in one_pass(data, limit=7)])
    with torch.no_grad():
        assert logits.numpy() == pytest.approx(network(standardise(image, (0.3,) * 3, (0.2,) * 3)).numpy(), abs=1e-4)
    assert len(label) == 7
    with pytest.raises(UserError, match="resnet8 has no weights"):
        load_asked("net", "resnet8", data, "cpu")
