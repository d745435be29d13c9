"""A workbench for one stage: packed images, tiny params, and what the stages before would have left."""

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from stages.backbone.checkpoint import build_backbone, describe, save_backbone
from stages.core.artefacts import write_metrics
from stages.runtime.state import StageState
from stages.runtime.watch import Watch
from stages.segmenter.network import Segmenter
from stages.segmenter.segmenter_file import describe_segmenter, save_segmenter
from stages.settings.errors import UserError
from stages.settings.params import load
from stages.settings.schema import Params
from tests.datasets import REPOSITORY, write_params

Main = Callable[[Sequence[str]], None]
# What `train` reads, at the names that a Bench gives.
TRAIN_INPUTS = [
    *("--images", "images/train", "--views", "kept_views.npy", "--label-metrics", "label.json"),
    *("--backbone", "backbone.safetensors"),
]


def heed_sigint() -> None:
    """For `preexec_fn`: tests in the background of a shell ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Bench:
    """The current folder, as a stage finds it; all paths are relative to it."""

    def __init__(self, folder: Path, tiny: Mapping[str, Any]) -> None:
        self.folder, self._tiny = folder, tiny
        self.params()

    def params(self, **changes: Any) -> None:
        """Write params.yaml: `bench.params(train__lr=0.1)` changes train.lr, all else is tiny."""
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        write_params(self.folder / "params.yaml", {**self._tiny, **dotted})

    def read(self, *keys: str) -> Params:
        """Sections of params.yaml."""
        return load(self.folder / "params.yaml", *keys)

    def write_backbone(self, heads: Mapping[str, torch.Tensor] | None = None) -> None:
        """An untrained backbone, as `pretrain` writes it, with heads that belong to it."""
        torch.manual_seed(0)
        settings = self.read("backbone").backbone
        backbone = build_backbone(describe(settings))
        save_backbone(self.folder / "backbone.safetensors", backbone, settings, heads)

    def write_kept_views(self, count: int = 16) -> None:
        """Random pseudo-labels, -1 for six of ten, as `select_views` writes them."""
        rng = np.random.default_rng(0)
        kept = np.where(rng.random((count, 6)) < 0.4, rng.integers(0, 4, (count, 6)), -1)
        np.save(self.folder / "kept_views.npy", kept.astype(np.int32))
        self.write_label_metrics(0.675)

    def write_label_metrics(self, stability: float, position: float = 0.0) -> None:
        """The figures of the pseudo-labels that `train` reads, as `label` writes it."""
        write_metrics(
            self.folder / "label.json",
            {"label": {"stability": stability, "agreement_with_position": position}},
        )

    def write_segmenter(self) -> None:
        """An untrained segmenter, as `train` writes it."""
        params = self.read("backbone", "train", "size_px")
        torch.manual_seed(0)
        segmenter = Segmenter(
            build_backbone(describe(params.backbone)),
            fpn_dim=params.train.fpn_dim,
            feature_stride=params.train.feature_stride,
            context=params.train.context,
            metric=params.train.pixel_loss.metric,
            freeze=params.train.freeze,
        )
        about = describe_segmenter(params.backbone, params.train, params.size_px)
        centroids = F.normalize(torch.randn(2, 3, params.train.fpn_dim), dim=2)
        save_segmenter(self.folder / "segmenter.safetensors", segmenter, list(centroids), about)

    def write_centroids(self, num_clusters: int = 3, dim: int = 8) -> None:
        """Random unit centroids, as `cluster` writes them."""
        values = torch.randn(num_clusters, dim, generator=torch.Generator().manual_seed(0))
        tensors = {"centroids": values / values.norm(dim=1, keepdim=True)}
        save_file(tensors, self.folder / "pixel_centroids.safetensors", {"about": "{}"})
        self.claim_centroids()

    def claim_centroids(self, folder: str = ".") -> None:
        """Let the centroids in a folder say that they were made for the segmenter beside them."""
        path = Path(folder) / "pixel_centroids.safetensors"
        tensors, about = self.tensors(str(path))
        segmenter = (self.folder / folder / "segmenter.safetensors").read_bytes()
        about["segmenter"] = hashlib.sha256(segmenter).hexdigest()
        save_file(tensors, self.folder / path, {"about": json.dumps(about)})

    def write_labels(self, count: int = 16) -> None:
        """Random pseudo-labels and scores, as `label` writes them."""
        rng = np.random.default_rng(0)
        tensors = {
            "centroids": torch.eye(4, 8),
            "pseudo_label": torch.from_numpy(rng.integers(0, 4, (count, 6))),
            "score": torch.from_numpy(rng.random((count, 6), dtype=np.float32)),
        }
        save_file(tensors, self.folder / "labels.safetensors", {"about": "{}"})

    def interrupt(self, main: Main, argv: Sequence[str], after: int, patch: pytest.MonkeyPatch) -> None:
        """Run a stage that saves its state at every step, and break it off after the save number `after`."""
        save, saved = StageState.save, []

        def save_and_stop(state: StageState, content: Any) -> None:
            save(state, content)
            saved.append(1)
            if len(saved) == after:
                raise KeyboardInterrupt

        with patch.context() as inner:
            inner.setattr(StageState, "is_due", lambda _: True)
            inner.setattr(StageState, "save", save_and_stop)
            try:
                main(argv)
            except KeyboardInterrupt:
                pass
            else:
                pytest.fail(f"the stage ended after {len(saved)} saves, before save {after}")
        gc.collect()  # the lock of a process goes when the process does; here, with its last reference

    def count_saves(self, main: Main, argv: Sequence[str], patch: pytest.MonkeyPatch) -> int:
        """How often a stage saves its state if it does so at every chance."""
        saved: list[int] = []
        with patch.context() as inner:
            inner.setattr(StageState, "is_due", lambda _: True)
            inner.setattr(StageState, "save", lambda _, content: saved.append(1))
            main(argv)
        return len(saved)

    def hashes(self, *paths: str) -> dict[str, str]:
        """Of the contents of output files."""
        return {path: hashlib.sha256((self.folder / path).read_bytes()).hexdigest() for path in paths}

    def saved_states(self) -> list[Path]:
        """Files under the state folder."""
        return [path for path in (self.folder / ".state").rglob("*") if path.is_file()]

    def fault(self, main: Main, argv: Sequence[str]) -> str:
        """What a stage says of the user's mistake; nothing may be left half-written."""
        with pytest.raises(UserError) as raised:
            main(argv)
        left = [path for path in self.folder.rglob(".*.*") if ".state" not in path.parts]
        assert not left, "temporary files are left"
        return str(raised.value)

    def tensors(self, path: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Content and description of a safetensors file."""
        with safe_open(self.folder / path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(  # noqa: SIM118
                file.metadata()["about"]
            )

    def command(self, stage: str, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """The stage as a process of its own."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", f"stages.{stage}", *argv],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def command_fault(self, stage: str, argv: Sequence[str]) -> str:
        """The message of a process that ended as a user's mistake has to end."""
        ended = self.command(stage, argv)
        assert ended.returncode == 2, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stderr


@pytest.fixture
def change_at_end(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Takes what is to happen when the work of a stage is done and its outputs are not yet written."""

    def arrange(change: Callable[[], object]) -> None:
        check = Watch.check

        def change_and_check(watch: Watch, *kept: str) -> None:
            change()
            check(watch, *kept)

        monkeypatch.setattr(Watch, "check", change_and_check)

    return arrange


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Networks that are compiled, by class: traced as torch.compile does, but run by torch as it is."""
    compile_network, names = torch.nn.Module.compile, []

    def trace(network: torch.nn.Module, **options: Any) -> None:
        names.append(type(network).__name__)
        compile_network(network, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    return names


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors that stages call float are double, so that two ways of summing differ by little."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def bench(tmp_path: Path, packed: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A workbench in a folder of its own, which is the current one."""
    assert packed == tmp_path / "images"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return Bench(tmp_path, tiny)
