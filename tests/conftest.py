"""What every test may ask for: a device, tiny params, tiny packed images; and no test reaches a network."""

import gc
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch

from stages.core.device import choose_device
from stages.dataset.truth import write_classes
from tests.datasets import CLASS_NAMES, scene, write_params
from tests.workbench import bench, change_at_end, compiled, in_float64  # noqa: F401, these are fixtures

# Examples are few and not timed, so that a busy machine makes no test fail.
hypothesis.settings.register_profile("fs4", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("fs4")

NUM_TRAIN, NUM_VAL, TRAIN_PX, SIZE_PX = 16, 4, 40, 32

# Everything as small as the stages allow, and every switch at a known place, whatever params.yaml says.
TINY: dict[str, Any] = {
    "size_px": SIZE_PX,
    "global_k": 4,
    "pixel_k": 3,
    "select_ratio": 0.4,
    "crop_ratio": 0.5,
    "precision": "float32",
    "deterministic": True,
    "compile": False,
    "device": "cpu",
    "backbone.arch": "resnet18",
    "backbone.width": 8,
    "backbone.stem_stride": 2,
    "backbone.patch_px": 8,
    "backbone.registers": 0,
    "backbone.layer_scale": False,
    "prepare.train_px": TRAIN_PX,
    "prepare.demo.num_train": NUM_TRAIN,
    "prepare.demo.num_val": NUM_VAL,
    "prepare.reader": "demo",
    "prepare.protocol": "own",
    "prepare.taxonomy": "own",
    "prepare.split.by": "folder",
    "pretrain.method": "mocov2",
    "pretrain.init": "",
    "pretrain.init_key": "",
    "pretrain.init_sha256": "",
    "pretrain.epochs": 2,
    "pretrain.batch_size": 8,
    "pretrain.image_px": SIZE_PX,
    "pretrain.queue_size": 8,
    "pretrain.projection_dim": 16,
    "pretrain.optimizer": "sgd",
    "pretrain.lr": 0.06,
    "pretrain.warmup_epochs": 1.0,
    "pretrain.batch_negatives": True,
    "pretrain.head_batch_norm": True,
    "pretrain.symmetric": True,
    "pretrain.bn_splits": 2,
    "pretrain.photometric.jitter_together": True,
    "pretrain.swav.num_prototypes": 5,
    "pretrain.swav.local_crops": 2,
    "pretrain.swav.local_px": 16,
    "pretrain.swav.freeze_epochs": 1,
    "pretrain.swav.queue_size": 8,
    "pretrain.swav.queue_from_epoch": 1,
    "pretrain.dense.image_px": SIZE_PX,
    "pretrain.dense.dilate": True,
    "pretrain.dense.mocov2_epochs": 0,
    "pretrain.densecl.weight": 0.5,
    "pretrain.densecl.warmup_epochs": 0.0,
    "pretrain.slotcon.num_prototypes": 5,
    "pretrain.slotcon.hidden_dim": 12,
    "pretrain.slotcon.overlap": 0.3,
    "embed.batch_size": 6,
    "embed.image_px": SIZE_PX,
    "embed.centre_ratio": 0.875,
    "label.centres": "auto",
    "label.fit_views": "whole",
    "label.sample_views": 50000,
    "label.iterations": 10,
    "label.restarts": 2,
    "select_views.pool": "pyramid",
    "select_views.scope": "global",
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.fpn_dim": 8,
    "train.feature_stride": 2,
    "train.lr": 0.001,
    "train.freeze": "none",
    "train.crop_first": True,
    "train.color_views": "both",
    "train.photometric.jitter_together": True,
    "train.pixel_loss.balance": "none",
    "train.pixel_loss.cross_weight": 0.5,
    "train.image_loss.weight": 1.0,
    "train.image_loss.head": "modified",
    "train.context.similarity": "both",
    "train.context.combine": "product",
    "train.context.norm": "l1",
    "train.context.stride": 4,
    "train.context.start": "identity",
    "train.clustering.num_clusters": 0,
    "train.clustering.sample_images": 12,
    "train.clustering.sample_pixels": 600,
    "train.clustering.iterations": 5,
    "train.clustering.kmeans": "sample",
    "train.clustering.init_batches": 2,
    "train.clustering.batches_per_update": 1,
    "train.clustering.unit_centroids": True,
    "train.clustering.assign": "dot",
    "train.clustering.assign_batch_norm": "batch",
    "train.pixel_loss.metric": "dot",
    "train.image_loss.views": "sample",
    "train.image_loss.warmup_epochs": 0.0,
    "train.image_loss.label_smoothing": 0.0,
    "train.image_loss.balance": "none",
    "train.image_loss.held_out": 0.0,
    "train.context.color": "rgb",
    "train.context.image": "view",
    "train.context.residual": "add",
    "train.context.learn_kernels": True,
    "cluster.centroids": "fresh",
    "cluster.kmeans": "sample",
    "cluster.init_batches": 2,
    "cluster.unit_centroids": True,
    "cluster.batch_norm": "running",
    "predict.mirror": False,
    "predict.unit_features": True,
    "train.image_loss.view_px": SIZE_PX,
    "cluster.batch_size": 5,
    "cluster.sample_images": 12,
    "cluster.sample_pixels": 600,
    "cluster.iterations": 10,
    "cluster.restarts": 2,
    "predict.batch_size": 3,
    "refine.backend": "auto",
    "report.num_images": 2,
    "report.num_clusters": 2,
    "report.views_per_cluster": 2,
    "report.single_file": False,
    "runtime.num_workers": 1,
    "runtime.check_data": [],
    "runtime.cuda_graph": "auto",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where tests of tensors run (default: cpu)"
    )
    parser.addoption("--hosts", action="store_true", help="only the tests over two hosts, which take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--device cuda` or `--hosts`, the tests for these and no others; else none of them."""
    if config.getoption("--hosts"):
        others = [item for item in items if not item.get_closest_marker("hosts")]
    elif config.getoption("--device") == "cuda":
        others = [item for item in items if "device" not in getattr(item, "fixturenames", ())]
    else:
        others = [
            item for item in items if item.get_closest_marker("gpu") or item.get_closest_marker("hosts")
        ]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say it where nothing ran for want of a GPU."""
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        terminalreporter.write_line(f"--device cuda: torch {torch.__version__} sees no CUDA GPU; nothing ran")


def pytest_configure() -> None:
    torch.set_num_threads(1)  # sums in one order, and no test that depends on the machine


def pytest_collection_finish() -> None:
    """Tests that look for leaks collect garbage; what the imports have made is none."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Leave nothing that triton would call leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where tests of tensors run, by `--device`."""
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"--device cuda: torch {torch.__version__} sees no CUDA GPU here")
    # A GPU as stages take it: torch by itself would round the inputs of convolutions to TF32.
    return choose_device(name) if name == "cuda" else torch.device(name)


class _Offline(socket.socket):
    """A socket that stays on this machine."""

    def connect(self, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
            raise RuntimeError(f"a test tried to use the network: {address}")
        super().connect(address)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", _Offline)
        yield


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """A stage flushes them for its whole process, which the next test shares."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Dotted keys and values that make every stage tiny."""
    return dict(TINY)


@pytest.fixture
def tiny_params(tmp_path: Path) -> Callable[..., Path]:
    """Writes params.yaml with tiny values: `tiny_params({"train.lr": 0.1})`."""

    def write(changes: Mapping[str, Any] | None = None, path: Path = tmp_path / "params.yaml") -> Path:
        return write_params(path, {**TINY, **(changes or {})})

    return write


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder as `prepare` writes it: images/ with both splits and truth/ beside it; returns images/."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for split, count, side in (("train", NUM_TRAIN, TRAIN_PX), ("val", NUM_VAL, SIZE_PX)):
        scenes = [scene(rng, side, side) for _ in range(count)]
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "images.npy", np.stack([pixels for pixels, _ in scenes]))
        names = [f"{split}/{index:03d}" for index in range(count)]
        pd.DataFrame(
            {
                "id": names,
                "source": [f"images/{name}.png" for name in names],
                "width": side,
                "height": side,
                "sha256": "0" * 64,
            }
        ).to_csv(folder / split / "index.csv", index=False)
    truth = tmp_path / "truth"
    truth.mkdir()
    np.save(truth / "val.npy", np.stack([labels for _, labels in scenes]))
    write_classes(truth, CLASS_NAMES)
    return folder
