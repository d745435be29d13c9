"""What the methods of pretraining have in common, by which the Pretrainer trains any of them."""

import pytest
import torch

from stages.core.step import Drawn
from stages.pretraining.method import Method
from stages.pretraining.methods import build_method
from stages.settings.section import Backbone
from tests.datasets import read_preset

SMALL = Backbone(arch="resnet18", width=8, stem_stride=2, patch_px=16, registers=0, layer_scale=False)


def _method(name: str) -> Method:
    settings = read_preset("demo").pretrain.model_copy(update={"method": name, "batch_size": 4})
    return build_method(settings, SMALL, None, num_images=16, seed=0, precision="float32")


@pytest.mark.parametrize(
    ("name", "delivers"),
    [("mocov2", "encoder"), ("densecl", "encoder"), ("swav", "encoder"), ("slotcon", "teacher")],
)
def test_each_method_says_which_backbone_it_delivers(name: str, delivers: str) -> None:
    method = _method(name)
    assert method.backbone is method.get_submodule(delivers).get_submodule("backbone")
    assert not any(one.split(".")[0] == "backbone" for one in method.state_dict())


@pytest.mark.parametrize("name", ["mocov2", "densecl", "swav", "slotcon"])
def test_a_method_whose_steps_may_differ_in_shape_says_why(name: str) -> None:
    """All are asked for more images than any limit."""
    method = _method(name).to("meta")
    assert method.has_fixed_shape(10**9) == (method.VARIES == "")


def test_slotcon_takes_each_batch_at_once() -> None:
    with pytest.raises(NotImplementedError):
        _method("slotcon").targets(torch.zeros(4, 3, 24, 24), Drawn(()))
