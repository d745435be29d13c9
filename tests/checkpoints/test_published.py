"""Checkpoints of others: every published format gives its weights, and every other file a clear error."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from stages.backbone.checkpoint import build_backbone
from stages.checkpoints.published import Published, read_published
from stages.pretraining.encoder import Encoder
from stages.pseudo_labels.centres import project
from stages.settings.errors import UserError
from stages.settings.section import Backbone
from tests.published_models import (
    FORMATS,
    RESNET,
    VIT,
    classifier,
    prefixed,
    projection_head,
    random_trunk,
    write_checkpoint,
)

DEFAULTS = {"stem_stride": 2, "patch_px": 16, "registers": 0, "layer_scale": False}


def _read(path: Path, about: dict[str, Any] = RESNET, pinned: str = "") -> Published:
    return read_published(path, Backbone(**{**DEFAULTS, **about}), pinned)


def _fault(path: Path, about: dict[str, Any] = RESNET, pinned: str = "") -> str:
    with pytest.raises(UserError) as raised:
        _read(path, about, pinned)
    return str(raised.value)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_its_weights(tmp_path: Path, name: str, legacy: bool) -> None:
    about, _, heads = FORMATS[name]
    source = write_checkpoint(tmp_path / "file.pth.tar", name, legacy=legacy)
    published = _read(tmp_path / "file.pth.tar", about)
    assert published.unexpected == ()
    assert {head.split(".")[0] for head in published.heads} == heads
    trunk = build_backbone(about).eval()
    published.fill(trunk)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(trunk.global_feature(image), source.global_feature(image))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_at_width_64_names_and_shapes_are_those_of_torchvision(arch: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, arch)().state_dict()
        ours = build_backbone({"arch": arch, "width": 64, "stem_stride": 4}).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items() if not name.startswith("fc.")
    }


@pytest.mark.parametrize(
    ("arch", "patch_px", "dim", "positions"),
    [("vit_small", 16, 384, 197), ("vit_small", 8, 384, 785), ("vit_base", 14, 768, 1370)],
)
def test_at_width_64_shapes_are_those_of_dino(arch: str, patch_px: int, dim: int, positions: int) -> None:
    about = {"arch": arch, "width": 64, "patch_px": patch_px, "registers": 4, "layer_scale": True}
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in build_backbone(about).state_dict().items()}
    expected = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, positions, dim),
        "register_tokens": (1, 4, dim),
        "patch_embed.proj.weight": (dim, 3, patch_px, patch_px),
        "blocks.11.attn.qkv.weight": (3 * dim, dim),
        "blocks.0.attn.proj.bias": (dim,),
        "blocks.0.mlp.fc1.weight": (4 * dim, dim),
        "blocks.5.mlp.fc2.weight": (dim, 4 * dim),
        "blocks.0.ls2.gamma": (dim,),
        "norm.weight": (dim,),
    }
    assert {name: shapes[name] for name in expected} == expected
    assert "blocks.12.norm1.weight" not in shapes


def test_heads_keep_their_values_under_names_of_ours(tmp_path: Path) -> None:
    trunk, swav, fc = random_trunk(RESNET).state_dict(), projection_head("swav"), classifier()
    torch.save(prefixed("module.", trunk | swav), tmp_path / "swav.pth")
    heads = _read(tmp_path / "swav.pth").heads
    assert torch.equal(heads["prototypes.weight"], swav["prototypes.weight"])
    for name in ("0.weight", "1.weight", "1.running_var", "3.weight", "3.bias"):
        assert torch.equal(heads[f"projection.{name}"], swav[f"projection_head.{name}"])
    shifted = swav["projection_head.1.running_mean"] - swav["projection_head.0.bias"]
    assert torch.equal(heads["projection.1.running_mean"], shifted), "the bias before a batch norm is folded"
    save_file(trunk | fc, tmp_path / "fc.safetensors")
    heads = _read(tmp_path / "fc.safetensors").heads
    assert list(heads) == ["classifier.bias", "classifier.weight"]
    assert torch.equal(heads["classifier.weight"], fc["fc.weight"])
    several = projection_head("deepcluster")
    torch.save(prefixed("module.", trunk | several), tmp_path / "several.pth")
    sets = [several[f"prototypes.prototypes{i}.weight"] for i in range(3)]
    assert torch.equal(_read(tmp_path / "several.pth").heads["prototypes.weight"], torch.cat(sets))


def test_a_projection_head_of_the_same_layers_is_taken_up(tmp_path: Path) -> None:
    trunk = random_trunk(RESNET)
    for kind, norm in (("mocov2", False), ("swav", True)):
        write_checkpoint(tmp_path / f"{kind}.pth", kind, trunk)
        published = _read(tmp_path / f"{kind}.pth")
        encoder = Encoder(build_backbone(RESNET), 5, head_batch_norm=norm).eval()
        assert published.fill_head("projection", encoder.head)
        feature = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = F.normalize(encoder.head(feature), dim=1)
        torch.testing.assert_close(found, project(feature, published.heads))
        other = Encoder(build_backbone(RESNET), 6, head_batch_norm=norm)
        before = copy.deepcopy(other.head.state_dict())
        assert not published.fill_head("projection", other.head)
        assert all(torch.equal(value, before[name]) for name, value in other.head.state_dict().items())
    prototypes = nn.Linear(5, 7, bias=False)
    assert published.fill_head("prototypes", prototypes)
    assert torch.equal(prototypes.weight, published.heads["prototypes.weight"])
    assert not published.fill_head("prototypes", nn.Linear(5, 8, bias=False))


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    half = {name: value.half() for name, value in random_trunk(RESNET).state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    assert {value.dtype for value in _read(tmp_path / "half.pth").trunk.values()} == {torch.float32}


def test_positions_of_another_grid_are_resampled(tmp_path: Path) -> None:
    tensors = dict(random_trunk(VIT).state_dict())
    tensors["pos_embed"] = torch.cat([torch.zeros(1, 1, 12), torch.full((1, 49, 12), 0.3)], 1)
    torch.save(tensors, tmp_path / "vit.pth")
    found = _read(tmp_path / "vit.pth", VIT).trunk["pos_embed"]
    assert found.shape == (1, 785, 12)
    torch.testing.assert_close(found[:, 1:], torch.full((1, 784, 12), 0.3))
    assert (found[:, 0] == 0).all()


def test_what_is_neither_trunk_nor_head_is_reported(tmp_path: Path) -> None:
    torch.save(random_trunk(RESNET).state_dict() | {"made_up.weight": torch.ones(1)}, tmp_path / "more.pth")
    published = _read(tmp_path / "more.pth")
    assert published.unexpected == ("made_up.weight",)
    report = published.report()
    assert {name: report[name] for name in ("matched", "unexpected", "heads")} == {
        "matched": 100,
        "unexpected": 1,
        "heads": "none",
    }


def test_a_trunk_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    """One is enough: a ResNet-D lacks the stem alone, a ViT with rotary embeddings the positions."""
    tensors, path = dict(random_trunk(RESNET).state_dict()), tmp_path / "less.pth"
    del tensors["conv1.weight"]
    torch.save(tensors, path)
    assert _fault(path) == (
        f"{path}: lacks 1 of the backbone's 100 tensors (conv1.weight); the file is truncated or of another "
        "architecture"
    )


ARCHITECTURES = [
    (RESNET, {"arch": "resnet50"}, "backbone.arch: resnet18", "backbone.arch: resnet50"),
    (RESNET, {"width": 64}, "backbone.width: 8", "backbone.width: 64"),
    (VIT, {"patch_px": 16}, "backbone.patch_px: 8", "backbone.patch_px: 16"),
    (
        {**VIT, "registers": 4, "layer_scale": True},
        {"registers": 0, "layer_scale": False},
        "backbone.registers: 4, backbone.layer_scale: True",
        "backbone.registers: 0, backbone.layer_scale: False",
    ),
    (
        {**VIT, "width": 64},
        {"arch": "resnet18", "width": 8},
        "backbone.arch: vit_small, backbone.width: 64, backbone.patch_px: 8",
        "backbone.arch: resnet18, backbone.width: 8, backbone.patch_px: 16",
    ),
]


@pytest.mark.parametrize(("held", "asked", "theirs", "ours"), ARCHITECTURES)
def test_another_architecture_is_named(
    tmp_path: Path, held: dict[str, Any], asked: dict[str, Any], theirs: str, ours: str
) -> None:
    path = tmp_path / "other.pth"
    with torch.device("meta"):
        tensors = {name: value.shape for name, value in build_backbone(held).state_dict().items()}
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in tensors.items()}, path)
    changed = {**DEFAULTS, **asked} if held.get("patch_px") and "arch" in asked else {**held, **asked}
    assert _fault(path, changed) == (
        f"{path}: holds {theirs}, but params.yaml says {ours}; change params.yaml to match, or choose "
        "another file"
    )


def test_a_resnet_that_cannot_be_named(tmp_path: Path) -> None:
    tensors = random_trunk(RESNET).state_dict()
    deeper = tensors | {name.replace("layer3.1", "layer3.2"): value for name, value in tensors.items()}
    path = tmp_path / "deeper.pth"
    torch.save(deeper, path)
    assert "holds backbone.arch: a ResNet of 2+2+3+2 blocks of 2 convolutions, but" in _fault(path)
    torch.save(tensors | {"layer3.0.conv1.weight": torch.zeros(9, 16, 3, 3)}, path)
    assert _fault(path) == (
        f"{path}: tensor shapes differ from the backbone in params.yaml "
        "(layer3.0.conv1.weight [9, 16, 3, 3] instead of [32, 16, 3, 3]); "
        "the `backbone` settings do not support this architecture"
    )


def test_a_vit_that_cannot_be_named(tmp_path: Path) -> None:
    tensors, path = random_trunk(VIT).state_dict(), tmp_path / "vit.pth"
    torch.save(tensors | {"pos_embed": torch.zeros(1, 198, 12)}, path)
    assert "tensor shapes differ from the backbone in params.yaml (pos_embed [1, 198, 12]" in _fault(
        path, VIT
    )
    torch.save(tensors | {"patch_embed.proj.weight": torch.zeros(12, 3, 2, 8, 8)}, path)
    assert "holds backbone.arch: a ViT of patches of 3 dimensions, but" in _fault(path, VIT)
    torch.save(tensors | {"blocks.23.ls1.gamma": torch.zeros(12)}, path)
    assert "holds backbone.arch: a ViT of 24 blocks of 12 channels, but" in _fault(path, VIT)


def test_tensors_of_no_known_network(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.ones(1)}, path)
    assert _fault(path) == (
        f"{path}: its tensor names match neither a ResNet nor a ViT (features.0.weight); "
        "pretrain.init supports only these two"
    )
    for content in ({}, {"epoch": 3}, [torch.ones(1)], torch.ones(1)):
        torch.save(content, path)
        assert _fault(path) == (
            f"{path}: contains no named tensors, so it is not a network checkpoint; save the state_dict"
        )


UNREADABLE = "cannot be loaded as a checkpoint without executing code from it ("


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pth")
    if kind == "safetensors":
        save_file(random_trunk(RESNET).state_dict(), path)
    else:
        write_checkpoint(path, "mocov2", legacy=kind == "legacy")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert UNREADABLE in _fault(path)
    if share >= 0.3 and kind != "legacy":
        assert _fault(path).startswith(f"{path}: is truncated, at {path.stat().st_size:,} bytes, cannot be")


@pytest.mark.parametrize(
    "content", [b"<html>Not found</html>", b"\x80\x02", b"PK\x03\x04", bytes(range(256)) * 9]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"page{suffix}"
    path.write_bytes(content)
    message = _fault(path)
    assert UNREADABLE in message
    assert message.startswith(f"{path}: is a web page, not the file") == content.startswith(b"<html")


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    assert _fault(path).startswith(f"{path}: is a Git LFS pointer in place of the file (run `git lfs pull`")


def _several(trunk: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Files with several networks, where `trunk` is the one to take."""
    return {
        "student before teacher": {
            "student": prefixed("backbone.", other),
            "teacher": prefixed("backbone.", trunk),
        },
        "both in one mapping": {
            "state_dict": prefixed("student.backbone.", other) | prefixed("teacher.backbone.", trunk)
        },
        "an average beside the model": {"model": other, "model_ema": trunk},
        "state_dict_ema": {"state_dict": other, "state_dict_ema": trunk, "epoch": 3},
        "a momentum encoder first": prefixed("momentum_encoder.", other) | prefixed("encoder.", trunk),
        "model_state_dict": {"model_state_dict": trunk, "optimizer_state_dict": {"state": {}}},
        "net": {"net": prefixed("module.", trunk)},
        "a state_dict within the model": {"model": {"state_dict": trunk}},
        "compiled, then distributed": prefixed("module._orig_mod.", trunk),
        "distributed, then compiled": prefixed("_orig_mod.module.", trunk),
        "compiled inside": {name.replace("layer4.", "layer4._orig_mod."): one for name, one in trunk.items()},
    }


@pytest.mark.parametrize("case", list(_several({}, {})))
def test_of_several_networks_the_right_one_is_taken(tmp_path: Path, case: str) -> None:
    trunk = random_trunk(RESNET).state_dict()
    other = {name: value + 1 for name, value in trunk.items()}
    torch.save(_several(trunk, other)[case], tmp_path / "file.pth")
    published = _read(tmp_path / "file.pth")
    for name, value in published.trunk.items():
        torch.testing.assert_close(value, trunk[name], msg=name)


def test_a_key_chooses_another_network_and_both_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = random_trunk(RESNET).state_dict()
    other = {name: value + 1 for name, value in trunk.items()}
    path = tmp_path / "file.pth"
    torch.save({"student": other, "teacher": trunk}, path)
    assert torch.equal(_read(path).trunk["conv1.weight"], trunk["conv1.weight"])
    assert "network 'teacher.'  others 'student.'  choose_with pretrain.init_key" in capsys.readouterr().out
    backbone = Backbone(**{**DEFAULTS, **RESNET})
    assert torch.equal(
        read_published(path, backbone, "", "student").trunk["conv1.weight"], other["conv1.weight"]
    )
    with pytest.raises(UserError) as raised:
        read_published(path, backbone, "", "tutor")
    assert str(raised.value) == (
        f"pretrain.init_key: 'tutor' is in no name of a network of {path}; it has 'teacher.', 'student.'"
    )


class _Harmful:
    """Runs a command when it is unpickled without care."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> Any:
        return os.system, (self._command,)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "harmful.pth", tmp_path / "trace"
    torch.save({"state_dict": random_trunk(RESNET).state_dict(), "extra": _Harmful(f"touch {trace}")}, path)
    assert _fault(path).startswith(f"{path}: {UNREADABLE}")
    assert not trace.exists()


def test_a_file_that_is_not_there_or_not_the_pinned_one(tmp_path: Path) -> None:
    path = tmp_path / "none.pth"
    remedy = "set pretrain.init to a checkpoint, absolute or relative to the root of the repository"
    assert _fault(path) == f"{path}: cannot be read (No such file or directory); {remedy}"
    assert _fault(tmp_path) == f"{tmp_path}: cannot be read (Is a directory); {remedy}"
    write_checkpoint(path, "swav")
    sha256 = _read(path).sha256
    assert _read(path, pinned=sha256).sha256 == sha256
    assert _fault(path, pinned="0" * 64) == (
        f"pretrain.init_sha256: is {'0' * 64}, but {path} has the SHA-256 {sha256}; the file differs or is "
        "truncated; get the pinned file, or set init_sha256 to this hash"
    )
