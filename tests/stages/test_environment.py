"""What a result says of where it was made."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from stages.runtime import environment
from stages.runtime.environment import code_version, describe_environment
from tests.datasets import REPOSITORY


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_packages_device_and_threads() -> None:
    found = describe_environment()
    packages = ["torch", "torchvision", "faiss", "numpy", "scipy"]
    assert list(found) == ["python", *packages, "device", "threads", "code"]
    assert found["torch"] == torch.__version__.split("+")[0] == str(version("torch")).split("+")[0]
    assert found["threads"] == torch.get_num_threads()
    assert "absent" not in found.values()
    assert str(found["device"]).startswith("cpu: ")
    assert found == describe_environment(torch.device("cpu"))


def test_the_model_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"model of {device}")
    assert describe_environment(torch.device("cuda:1"))["device"] == "cuda: model of cuda:1"


def test_the_model_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast: 3\nmodel name\t: Slow\n")
    monkeypatch.setattr(environment, "CPU_INFO", tmp_path / "cpuinfo")
    assert describe_environment()["device"] == "cpu: Fast: 3"
    monkeypatch.setattr(environment, "CPU_INFO", tmp_path / "gone")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert describe_environment()["device"] == "cpu: riscv64"


def test_one_of_several_distributions_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_for_cpus(name: str) -> str:
        if name == "faiss-cpu":
            return "1.2.3"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", only_for_cpus)
    found = describe_environment()
    assert (found["faiss"], found["scipy"]) == ("1.2.3", "absent")


def test_the_code_is_named_as_git_names_it(tmp_path: Path) -> None:
    code = tmp_path / "stages"
    for name in ("crf/a.py", "crf.py", "crf-b.py", "crf0/c.py", "page.html", "é.py"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(f"{name}\n", encoding="utf-8")
    (code / "crf.py").chmod(0o755)
    _git(tmp_path, "init", "--quiet")
    before = code_version(code)
    _git(tmp_path, "add", "--all")
    _git(tmp_path, "commit", "--quiet", "--message", "code")
    assert code_version(code) == before == _git(tmp_path, "rev-parse", "HEAD:stages")
    assert len(_git(tmp_path, "log", "-t", f"--find-object={before}", "--format=%H").split()) == 1

    (code / "room/empty").mkdir(parents=True)
    (code / "__pycache__").mkdir()
    (code / "__pycache__/crf.cpython-311.pyc").write_bytes(b"x")
    (tmp_path / "metrics.json").write_text("{}")
    assert code_version(code) == before
    (code / "crf.py").write_text("an edit")
    assert code_version(code) != before


def test_this_code_is_named() -> None:
    assert describe_environment()["code"] == code_version(REPOSITORY / "stages")
