"""What may happen to a disk and to files between two stages: noticed, named, and nothing lost."""

import contextlib
import gc
import io
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from stages import cluster, embed, evaluate, label, predict, prepare, pretrain, refine, select_views, train
from stages.core.atomic import atomic_path
from stages.settings.errors import UserError

IMAGES, TRAIN, VAL = "images", "images/train", "images/val"
SEGMENTER, CENTROIDS = "segmenter.safetensors", "pixel_centroids.safetensors"
BACKBONE, VIEWS, LABELS = "backbone.safetensors", "kept_views.npy", "labels.safetensors"
# Script, its inputs by flag, its outputs by flag; the largest output first.
STAGES: dict[str, tuple[ModuleType, dict[str, str], dict[str, str]]] = {
    "prepare": (
        prepare,
        {},
        {
            "train-images": "new/images/train",
            "val-images": "new/images/val",
            "truth": "new/truth",
            "left-out": "new/left_out.csv",
            "metrics": "new/m.json",
        },
    ),
    "pretrain": (
        pretrain,
        {"images": TRAIN},
        {"out": "new/out.safetensors", "history": "new/h.csv", "metrics": "new/m.json"},
    ),
    "embed": (embed, {"images": TRAIN, "backbone": BACKBONE}, {"out": "new/out.npy"}),
    "label": (
        label,
        {"embeddings": "embeddings.npy", "backbone": BACKBONE},
        {"out": "new/out.safetensors", "metrics": "new/m.json"},
    ),
    "select_views": (select_views, {"labels": LABELS}, {"out": "new/out.npy", "metrics": "new/m.json"}),
    "train": (
        train,
        {"images": TRAIN, "views": VIEWS, "label-metrics": "label.json", "backbone": BACKBONE},
        {"out": "new/out.safetensors", "history": "new/h.csv", "metrics": "new/m.json"},
    ),
    "cluster": (
        cluster,
        {"images": TRAIN, "segmenter": SEGMENTER},
        {"out": "new/out.safetensors", "metrics": "new/m.json"},
    ),
    "predict": (
        predict,
        {"images": VAL, "segmenter": SEGMENTER, "centroids": CENTROIDS},
        {"out": "new/out.npy"},
    ),
    "refine": (refine, {"images": VAL, "predictions": "predictions.npy"}, {"out": "new/out.npy"}),
    "evaluate": (
        evaluate,
        {"images": IMAGES, "predictions": "predictions.npy", "truth": "truth"},
        {
            "metrics": "new/m.json",
            "readings": "new/r.json",
            "readings-table": "new/r.csv",
            "per-class": "new/c.csv",
            "confusion-table": "new/x.csv",
        },
    ),
}
EXTRA = {"evaluate": ["--name", "raw"]}


def _argv(stage: str) -> list[str]:
    _, inputs, outputs = STAGES[stage]
    flags = {**inputs, **outputs}
    return [*EXTRA.get(stage, []), *(word for flag, path in flags.items() for word in (f"--{flag}", path))]


@pytest.fixture
def ready(bench: Any) -> Any:
    """All that any stage reads; one epoch each."""
    bench.params(pretrain__epochs=1, train__epochs=1, evaluate__baseline_restarts=1)
    bench.write_backbone()
    bench.write_kept_views()
    bench.write_segmenter()
    bench.write_centroids()
    bench.write_labels()
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(16, 6, 8)).astype(np.float32)
    np.save("embeddings.npy", unit / np.linalg.norm(unit, axis=2, keepdims=True))
    np.save("predictions.npy", rng.uniform(-1, 1, (4, 3, 16, 16)).astype(np.float16))
    return bench


def _files(folder: str) -> dict[str, bytes]:
    """What is finished; hidden folders wait for the next run."""
    paths = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in paths if "/." not in str(path)}


@contextlib.contextmanager
def _room_for(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond `num_bytes`: the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(ready: Any, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    """It is named, the results of before stay, and with room again the bytes are what they should be."""
    main, argv = STAGES[stage][0].main, _argv(stage)
    main(argv)
    whole = _files("new")
    largest = max(map(len, whole.values()))
    with capsys.disabled(), contextlib.redirect_stdout(io.StringIO()), _room_for(largest // 2):
        message = ready.fault(main, argv)
    gc.collect()  # the lock of a process goes when the process does; here, with its last reference
    path, _, rule = message.partition(": ")
    assert rule == (
        "cannot be written (File too large); free space on its disk and run the same command again"
    )
    assert path in STAGES[stage][2].values() or path.startswith(f".state/{stage}/")
    assert _files("new") == whole
    main(argv)
    assert _files("new") == whole
    assert ready.saved_states() == []


# A folder of the kernel's in which nobody may make a file, root neither.
FORBIDDEN = Path("/sys/kernel")


@pytest.mark.skipif(not FORBIDDEN.is_dir(), reason=f"this system has no {FORBIDDEN} to be refused by")
@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_may_not_be_written(ready: Any, stage: str) -> None:
    module, _, outputs = STAGES[stage]
    argv, target = _argv(stage), f"{FORBIDDEN}/out"
    # prepare asks for the free space beside its images first, and here there is none.
    argv[argv.index(outputs["truth"] if stage == "prepare" else next(iter(outputs.values())))] = target
    message = ready.fault(module.main, argv)
    assert re.fullmatch(
        rf"{target}: cannot be written \([A-Za-z -]+\); allow this user to write there and "
        "run the same command again",
        message,
    ), message


def test_a_file_where_a_folder_should_be(ready: Any) -> None:
    Path("new").write_text("in the way")
    assert ready.fault(embed.main, _argv("embed")) == (
        "new/out.npy: cannot be written, because new is a file; choose another place, or move that file away"
    )
    Path("new").unlink()
    gc.collect()
    embed.main(_argv("embed"))
    assert Path("new/out.npy").exists()


TMPFS = """
set -e
mount -t tmpfs -o size=256k none "$1"
exec "$2" -c '
import sys
from pathlib import Path
import numpy as np
from stages.core.artefacts import write_array
from stages.runtime.script import run
run(lambda: write_array(Path(sys.argv[1]) / "big.npy", np.ones(1_000_000, np.uint8)))
' "$1"
"""


def test_a_memory_map_on_a_disk_that_is_too_small_is_no_death_by_signal(tmp_path: Path) -> None:
    """The real thing, on a file system of 256 kB: without its place reserved, the first write is a SIGBUS."""
    command = ["unshare", "--mount", "sh", "-c", TMPFS, "sh", str(tmp_path), sys.executable]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
        )
    except FileNotFoundError:
        pytest.skip("no unshare(1) here, so no file system of our own")
    if "unshare" in ended.stderr or "mount:" in ended.stderr:
        pytest.skip(f"no right to mount a file system here: {ended.stderr.strip()}")
    assert (ended.returncode, ended.stderr) == (
        2,
        f"error: {tmp_path}/big.npy: cannot be written (No space left on device); free space on its disk "
        "and run the same command again\n",
    )


def test_other_errors_of_the_system_are_not_explained_away(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Too many open files"), atomic_path(tmp_path / "a"):
        raise OSError(24, "Too many open files")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_has_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised, atomic_path(tmp_path / "a"):
        raise OSError(5, "Input/output error")
    assert str(raised.value) == (
        f"{tmp_path / 'a'}: cannot be written (Input/output error); look whether its disk is still there, or "
        "choose another place"
    )


# Damaged inputs

DAMAGED = {
    ".npy": "not a .npy array",
    ".safetensors": "not a safetensors file of this project",
    ".csv": "not a CSV table",
    ".json": "not JSON",
}


def _damages() -> Iterator[tuple[str, str, str]]:
    pair = ("images.npy", "index.csv")
    folders = {
        "images": tuple(f"images/{split}/{name}" for split in ("train", "val") for name in pair),
        **{split: tuple(f"{split}/{name}" for name in pair) for split in (TRAIN, VAL)},
        "truth": ("truth/val.npy", "truth/classes.csv"),
    }
    for stage, (_, inputs, _) in STAGES.items():
        for given in inputs.values():
            for path in folders.get(given, (given,)):
                for damage in ("half", "empty", "other"):
                    yield stage, path, damage


@pytest.mark.parametrize(("stage", "path", "damage"), list(_damages()))
def test_a_damaged_input_is_named(ready: Any, stage: str, path: str, damage: str) -> None:
    content = Path(path).read_bytes()
    half = (
        content[: len(content) // 2].rpartition(b"\n")[0] + b"\n"
        if path.endswith(".csv")
        else content[: len(content) // 2]
    )
    Path(path).write_bytes({"half": half, "empty": b"", "other": b"\x93NUMPY no such thing\n" * 50}[damage])
    message = ready.fault(STAGES[stage][0].main, _argv(stage))
    if path.endswith(".csv") and damage == "half":  # a table like others, of fewer rows
        assert message.startswith(f"{path.replace('index.csv', 'images.npy')}: has ")
    else:
        assert message.startswith(f"{path}: {DAMAGED[Path(path).suffix]} (")
    assert re.search(r"; delete (it|the folder) and run `dvc repro` to make it again$", message), message
    assert not Path("new").exists()


# Stages that compute on `device`; `refine` has a setting of its own.
@pytest.mark.parametrize("stage", ["pretrain", "embed", "label", "train", "cluster", "predict"])
def test_a_gpu_that_is_asked_for_and_absent_is_an_error(ready: Any, stage: str) -> None:
    ready.params(device="cuda")
    message = ready.fault(STAGES[stage][0].main, _argv(stage))
    assert message.startswith("params.yaml: device: 'cuda' needs a CUDA GPU, but torch ")
    assert not Path("new").exists()


def test_a_user_error_is_no_oserror() -> None:
    """Or `named_faults` would swallow the words of the one inside."""
    assert not issubclass(UserError, OSError)
