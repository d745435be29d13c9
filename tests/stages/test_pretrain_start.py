"""`pretrain` from checkpoints: taken as they are, or continued."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import pretrain
from stages.checkpoints.checkpoint_file import read_networks
from stages.core.artefacts import read_metrics
from tests.published_models import VIT, random_trunk, write_checkpoint

OUTPUTS = ("backbone.safetensors", "history.csv", "pretrain.json")
ARGV = ["--images", "images/train", "--out", OUTPUTS[0], "--history", OUTPUTS[1], "--metrics", OUTPUTS[2]]
HEADS = ("projection", "prototypes", "classifier")


def _trunk_and_heads(bench: Any) -> tuple[dict[str, torch.Tensor], set[str]]:
    tensors, _ = bench.tensors(OUTPUTS[0])
    heads = {name.split(".")[0] for name in tensors} & set(HEADS)
    return {name: value for name, value in tensors.items() if name.split(".")[0] not in HEADS}, heads


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    names = [name for name in first if not name.endswith("num_batches_tracked")]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in names)


@pytest.mark.parametrize(
    ("name", "method", "heads"),
    [
        ("mocov2", "none", {"projection"}),
        ("swav", "none", {"projection", "prototypes"}),
        ("swav", "mocov2", {"projection", "prototypes"}),
        ("swav", "swav", {"projection", "prototypes"}),
        ("torchvision", "none", set()),
        ("torchvision", "mocov2", set()),
        ("torchvision", "supervised", {"classifier"}),
        ("dinov2 with registers", "none", set()),
    ],
)
def test_a_model_as_it_is_keeps_its_heads_but_its_classes_only_where_they_are_asked_for(
    bench: Any, name: str, method: str, heads: set[str]
) -> None:
    source = write_checkpoint(Path("model.pth"), name)
    vit = {"backbone__arch": "vit_small", "backbone__patch_px": 14, "backbone__registers": 4}
    vit |= {"backbone__width": 2, "backbone__layer_scale": True, "train__feature_stride": 2}
    epochs = 0 if method in ("mocov2", "swav") else 50  # the other methods train nothing
    changes = vit if name.startswith("dino") else {}
    bench.params(pretrain__method=method, pretrain__init="model.pth", pretrain__epochs=epochs, **changes)
    pretrain.main(ARGV)
    trunk, found = _trunk_and_heads(bench)
    assert found == heads
    assert _same(trunk, dict(source.state_dict()))
    assert Path(OUTPUTS[1]).read_text().count("\n") == 1, "there is a header and no epoch"
    metrics = read_metrics(Path(OUTPUTS[2]))["pretrain"]
    assert list(metrics) == ["init", "environment"]
    assert metrics["init"]["matched"] == len(
        [key for key in trunk if not key.endswith("num_batches_tracked")]
    )
    assert ("classifier" in metrics["init"]["heads"]) == (name == "torchvision"), "what the file has"
    assert metrics["init"]["sha256"] == hashlib.sha256(Path("model.pth").read_bytes()).hexdigest()


def test_without_a_checkpoint_none_leaves_random_weights(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.params(pretrain__method="none", pretrain__batch_size=64)  # of no concern
    pretrain.main(ARGV)
    assert (
        "pretrain: method none  epochs none, the initial model is used unchanged" in capsys.readouterr().out
    )
    first = bench.hashes(*OUTPUTS)
    assert list(read_metrics(Path(OUTPUTS[2]))["pretrain"]) == ["environment"]
    bench.params(pretrain__method="none", seed=1)
    pretrain.main(ARGV)
    assert bench.hashes(OUTPUTS[0])[OUTPUTS[0]] != first[OUTPUTS[0]]


def test_more_epochs_go_on_from_the_checkpoint(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = dict(write_checkpoint(Path("model.pth"), "mocov2").state_dict())
    changes = {"pretrain__init": "model.pth", "pretrain__epochs": 1, "pretrain__warmup_epochs": 0.0}
    bench.params(**changes, pretrain__lr=1e-6)
    pretrain.main(ARGV)
    said = capsys.readouterr().out
    assert "pretrain: init model.pth  network 'state_dict.module.encoder_q.'  matched 100  unexpected" in said
    assert "pretrain: projection_of_checkpoint False" in said, "it has other sizes here"
    near, heads = _trunk_and_heads(bench)
    assert heads == {"projection"}, "others speak of features that have moved"
    own_dim = bench.read("pretrain").pretrain.projection_dim
    assert bench.tensors("backbone.safetensors")[0]["projection.3.weight"].shape[0] == own_dim
    weights = [name for name in source if name.endswith("conv1.weight")]
    for name in weights:
        assert not torch.equal(near[name], source[name])
        torch.testing.assert_close(near[name], source[name], atol=1e-3, rtol=0)
    bench.params(**{**changes, "pretrain__init": ""}, pretrain__lr=1e-6)
    pretrain.main(ARGV)
    elsewhere, _ = _trunk_and_heads(bench)
    assert all((elsewhere[name] - source[name]).abs().max() > 1e-2 for name in weights)


def test_swav_goes_on_from_its_head_and_prototypes(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(Path("model.pth"), "swav")
    bench.params(
        pretrain__method="swav",
        pretrain__init="model.pth",
        pretrain__epochs=1,
        pretrain__lr=1e-9,
        pretrain__projection_dim=5,
        pretrain__swav__num_prototypes=7,
    )
    pretrain.main(ARGV)
    said = capsys.readouterr().out
    assert "pretrain: projection_of_checkpoint True" in said
    assert "pretrain: prototypes_of_checkpoint True" in said
    given = read_networks(Path("model.pth"))[""]["module.prototypes.weight"]
    trained = bench.tensors(OUTPUTS[0])[0]["prototypes.weight"]
    torch.testing.assert_close(trained, given / given.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)


def test_a_checkpoint_is_looked_for_in_the_repository(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC runs queued experiments in copies, and names the repository in DVC_ROOT."""
    (bench.folder / "main").mkdir()
    source = write_checkpoint(bench.folder / "main/model.pth", "densecl")
    monkeypatch.setenv("DVC_ROOT", str(bench.folder / "main"))
    bench.params(pretrain__method="none", pretrain__init="model.pth")
    pretrain.main(ARGV)
    assert _same(_trunk_and_heads(bench)[0], dict(source.state_dict()))


def test_another_file_than_the_pinned_one_is_refused(bench: Any) -> None:
    write_checkpoint(Path("model.pth"), "swav")
    found = hashlib.sha256(Path("model.pth").read_bytes()).hexdigest()
    bench.params(pretrain__init="model.pth", pretrain__init_sha256="0" * 64)
    assert bench.fault(pretrain.main, ARGV).startswith(f"pretrain.init_sha256: is {'0' * 64}, but model.pth ")
    bench.params(pretrain__method="none", pretrain__init="model.pth", pretrain__init_sha256=found)
    pretrain.main(ARGV)
    assert Path(OUTPUTS[0]).exists()


def test_a_file_that_changes_while_it_runs(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(Path("model.pth"), "densecl")
    bench.params(pretrain__method="none", pretrain__init="model.pth")
    start_trunk = pretrain.start_trunk

    def change(*args: Any) -> Any:
        write_checkpoint(Path("model.pth"), "mocov2")
        return start_trunk(*args)

    monkeypatch.setattr(pretrain, "start_trunk", change)
    assert "pretrain: changed while it ran: model.pth;" in bench.fault(pretrain.main, ARGV)
    assert not any(Path(path).exists() for path in OUTPUTS)


def test_supervised_needs_classes(bench: Any) -> None:
    write_checkpoint(Path("model.pth"), "swav")
    bench.params(pretrain__method="supervised", pretrain__init="model.pth")
    assert bench.fault(pretrain.main, ARGV) == (
        "model.pth: has no classifier (fc.weight), but pretrain.method: supervised needs one for its "
        "classes; set method: none to use only the backbone weights"
    )


def test_a_checkpoint_of_another_architecture_is_refused_before_anything_starts(bench: Any) -> None:
    torch.save(random_trunk(VIT).state_dict(), "model.pth")
    bench.params(pretrain__init="model.pth")
    assert bench.fault(pretrain.main, ARGV) == (
        "model.pth: holds backbone.arch: a ViT of 12 blocks of 12 channels, but params.yaml says "
        "backbone.arch: resnet18; change params.yaml to match, or choose another file"
    )
    assert bench.saved_states() == []
