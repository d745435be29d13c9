"""The ResNet trunk against torchvision's, whose names published checkpoints have."""

import pytest
import torch
import torchvision
from torch import nn

from stages.backbone.checkpoint import build_backbone

ARCHITECTURES = pytest.mark.parametrize("arch", ["resnet18", "resnet50"])


@ARCHITECTURES
def test_at_width_64_names_and_shapes_are_those_of_torchvision(arch: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, arch)().state_dict()
        ours = build_backbone({"arch": arch, "width": 64, "stem_stride": 4}).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items() if not name.startswith("fc.")
    }


def _randomize(network: nn.Module) -> None:
    """Other statistics and scales for every batch norm, so that none can stand for another."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                assert value is not None
                value.data.uniform_(0.5, 1.5, generator=generator)


@ARCHITECTURES
@pytest.mark.parametrize("is_training", [False, True])
def test_maps_and_gradients_are_those_of_torchvision(arch: str, is_training: bool) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, arch)()
    _randomize(theirs)
    weights = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    ours = build_backbone({"arch": arch, "width": 64, "stem_stride": 4})
    ours.load_state_dict(weights)
    for network in (ours, theirs):
        network.train(is_training)
    image = torch.rand(2, 3, 64, 64)
    expected = [theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))]
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        expected.append(layer(expected[-1]))
    found = ours(image)
    for ours_map, theirs_map in zip(found, expected[1:], strict=True):
        assert torch.equal(ours_map, theirs_map)
    found[-1].square().mean().backward()
    expected[-1].square().mean().backward()
    gradients = {name: value.grad for name, value in theirs.named_parameters() if not name.startswith("fc.")}
    for name, value in ours.named_parameters():
        assert value.grad is not None
        assert torch.equal(value.grad, gradients[name]), name
