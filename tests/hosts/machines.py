"""Two hosts on one machine: each has its own network, disk, name and processes; a cable joins them."""

import os
import shutil
import subprocess
from pathlib import Path

import psutil

from tests.pipeline.commands import environment

NAMES = ("fs4-a", "fs4-b")
ADDRESSES = ("10.213.44.1", "10.213.44.2")
TOOLS = ("ip", "unshare", "nsenter", "mount", "ssh", "ssh-keygen", "sshd")
SERVER = """
AuthorizedKeysFile /etc/ssh/key.pub
HostKey /etc/ssh/key
PermitRootLogin yes
StrictModes no
UsePAM no
MaxStartups 100
"""
CLIENT = """
IdentityFile /etc/ssh/key
UserKnownHostsFile /dev/null
StrictHostKeyChecking no
LogLevel ERROR
"""
# The path of the run is the same on both hosts, the disk is not. The first process is a shell that waits, so
# that no process whose parent was killed stays as a zombie, which DVC takes for a running one.
BOOT = """
set -e
hostname {name}
mount --bind {disk} {run}
mount --bind {folder}/ssh /etc/ssh
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/nsswitch.conf /etc/nsswitch.conf
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run
mkdir /run/sshd
{sshd} -D -E {folder}/{name}.log &
wait
"""


def missing() -> str:
    """Why there can be no hosts here, or ''."""
    if os.geteuid():
        return "only root may make hosts out of namespaces"
    if absent := [name for name in TOOLS if _path(name) is None]:
        return f"not installed: {', '.join(absent)} (Debian: iproute2, openssh-client, openssh-server)"
    command = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """One host.

    Attributes:
        disk: folder that the host sees as the folder of the run, and the other host does not see.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._run, self._netns, self.disk = folder / "run", f"{name}-{os.getpid()}", folder / name
        self.disk.mkdir()
        _do("ip", "netns", "add", self._netns)
        _do("ip", "-n", self._netns, "link", "set", "lo", "up")
        boot = BOOT.format(name=name, disk=self.disk, run=self._run, folder=folder, sshd=_path("sshd"))
        spaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]
        enter = ["ip", "netns", "exec", self._netns, "unshare", *spaces, "sh", "-c", boot]
        self._unshare = subprocess.Popen(enter)

    def cable(self, *settings: str) -> None:
        """Change the end of the cable at this host."""
        _do("ip", "-n", self._netns, *settings)

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a command in the folder of the run."""
        enter = [
            "nsenter",
            f"--target={self._first().pid}",
            "--all",
            "sh",
            "-c",
            'cd "$0" && exec "$@"',
            self._run,
        ]
        with log.open("wb") as file:
            return subprocess.Popen([*enter, *command], stdout=file, stderr=file, env=environment(self._run))

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Processes of the host with a word in their command line, without the first."""
        space = _space(self._first())
        found = []
        for process in psutil.process_iter():
            try:
                if _space(process) == space and word in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.Error, OSError):
                continue  # it has ended, or belongs to the kernel
        return found

    def close(self) -> None:
        """End all its processes."""
        self._unshare.kill()
        self._unshare.wait()
        _do("ip", "netns", "del", self._netns)

    def _first(self) -> psutil.Process:
        (first,) = psutil.Process(self._unshare.pid).children()
        return first


def _space(process: psutil.Process) -> str:
    return os.readlink(f"/proc/{process.pid}/ns/pid")


def _path(tool: str) -> str | None:
    """sshd starts only if it is called by its path."""
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def make_hosts(folder: Path) -> tuple[Host, Host]:
    """Two hosts that reach each other by ssh."""
    for name in ("run", "ssh"):
        (folder / name).mkdir()
    _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ssh/key"))
    (folder / "ssh/sshd_config").write_text(SERVER)
    (folder / "ssh/ssh_config").write_text(CLIENT)
    lines = [f"{address} {name}\n" for address, name in zip(ADDRESSES, NAMES, strict=True)]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
    (folder / "nsswitch.conf").write_text("hosts: files\n")  # there is no name server to wait for
    first, second = (Host(folder, name) for name in NAMES)
    ends = [host._netns for host in (first, second)]
    _do("ip", "link", "add", "cable", "netns", ends[0], "type", "veth", "peer", "cable", "netns", ends[1])
    for host, address in zip((first, second), ADDRESSES, strict=True):
        host.cable("address", "add", f"{address}/24", "dev", "cable")
        host.cable("link", "set", "cable", "up")
    return first, second
