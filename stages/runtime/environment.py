"""Where a result was made, so that two of them can be compared: packages, device, threads, code."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = {  # and the distributions that bring them
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "faiss": ("faiss-gpu", "faiss-cpu"),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
}
CODE = Path(__file__).parents[1]
NO_CODE = ("__pycache__", ".pyc", ".swp")  # as .gitignore has it
CPU_INFO = Path("/proc/cpuinfo")


def describe_environment(device: torch.device | None = None) -> dict[str, str | int]:
    """What may make a difference beside code, settings and data; the same on two clones on one machine.

    Args:
        device: where the tensors were; the CPU by default.
    """
    return {
        "python": platform.python_version(),
        **{name: _version(*distributions) for name, distributions in PACKAGES.items()},
        "device": _name(device or torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "code": code_version(CODE),
    }


def code_version(folder: Path) -> str:
    """The id that git gives a folder as it is now: `git rev-parse HEAD:stages`, where all is committed.

    `git log -t --find-object=<id>` names the commits that brought this code and took it away; where it
    names none, the code was never committed. The id of the newest commit would be another after the result
    is committed, in a copy or in a shallow clone, and an unchanged run would never give the same bytes.
    """
    entries = []
    for path in folder.iterdir():
        if path.name.endswith(NO_CODE):
            continue
        if not path.is_dir():
            mode = "100755" if path.stat().st_mode & 0o100 else "100644"
            entries.append((path.name, mode, _object_id("blob", path.read_bytes())))
        elif (tree := code_version(path)) != _object_id("tree", b""):
            entries.append((f"{path.name}/", "40000", tree))  # git sorts a folder by this name
    lines = [
        f"{mode} {name.rstrip('/')}\0".encode() + bytes.fromhex(of) for name, mode, of in sorted(entries)
    ]
    return _object_id("tree", b"".join(lines))


def _object_id(kind: str, content: bytes) -> str:
    """Git's id of an object."""
    header = f"{kind} {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "absent"


def _name(device: torch.device) -> str:
    """The model of a GPU or of the CPU: another one rounds otherwise."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"cpu: {models[0] if models else platform.processor() or platform.machine()}"
