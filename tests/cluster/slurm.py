"""Run a command with a real SLURM of two nodes on this machine, from Debian's packages.

    python tests/cluster/slurm.py pytest tests/cluster

It needs root and apt; it says why and ends well where it cannot run. State, keys and logs lie in a
temporary folder; only the three files in /etc/slurm do not (a job's srun looks nowhere else), and
they go when the command ends. A controller that dies is started again, as systemd would do.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ETC = Path("/etc/slurm")
MARK = "# of tests/cluster/slurm.py"
PACKAGES = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge"}
RESTART = 12  # seconds that a dead controller stays away
CPUS, MEMORY = 4, 12000  # of each node, whatever the machine has: most jobs here only wait

SETTINGS = """\
ClusterName=tests
SlurmctldHost={host}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
# Of the host's own address, which is loopback's on most machines, not of every one.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=3,bf_interval=3
SlurmdParameters=config_overrides
DefMemPerCPU=1000
MinJobAge=86400
KillWait=5
CompleteWait=0
MessageTimeout=60
SlurmctldTimeout=120
SlurmdTimeout=300
JobRequeue=0
# A job over its memory is killed within 5 seconds. With cgroups its state would be OUT_OF_MEMORY.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
JobAcctGatherParams=OverMemoryKill,NoShared
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName={names} NodeHostname={host} NodeAddr={address} Port={ports} CPUs={cpus} RealMemory={memory} Gres=gpu:2
PartitionName=cpu Nodes={names} Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=gpu Nodes={names} MaxTime=INFINITE DefaultTime=60 State=UP
"""  # noqa: E501
# No GPU is needed for SLURM to hand one out: any device file will do.
GRES = "NodeName={names} Name=gpu File=/dev/null\nNodeName={names} Name=gpu File=/dev/zero\n"
NODES = ("one", "two")


def obstacle() -> str | None:
    """Return what keeps SLURM from running here, if anything does."""
    if os.getuid():
        return "it needs root"
    if foreign := [path for path in _files() if path.exists() and not _ours(path)]:
        return f"{foreign[0]} is another SLURM's"
    try:
        socket.gethostbyname(_host())
    except OSError:
        return f"{_host()}, the name of this host, has no address"
    if _missing() and not shutil.which("apt-get"):
        return f"{', '.join(_missing())} and apt-get are not here"
    return None


def _missing() -> list[str]:
    return sorted({package for name, package in PACKAGES.items() if not shutil.which(name)})


def _host() -> str:
    return socket.gethostname().split(".")[0]


def install() -> str | None:
    """Install what is missing, with no service started; return why that cannot be."""
    if not (packages := _missing()):
        return None
    policy = Path("/usr/sbin/policy-rc.d")
    own = not policy.exists()
    if own:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    quiet = {"stdout": subprocess.DEVNULL}
    quiet["env"] = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        if subprocess.run(install, **quiet).returncode:
            subprocess.run(["apt-get", "update"], **quiet)
            if subprocess.run(install, **quiet).returncode:
                return f"apt-get cannot install {' '.join(packages)}"
        return None
    finally:
        if own:
            policy.unlink()


@contextmanager
def running() -> Iterator[tuple[Path, Callable[[], None]]]:
    """Give the folder of a SLURM that runs until the block ends, and what restarts its controller.

    Where another of these runs, its end is waited for.
    """
    with ExitStack() as stack:
        lock = Path(tempfile.gettempdir(), "tests-cluster-slurm.lock")
        fcntl.flock(stack.enter_context(lock.open("w")), fcntl.LOCK_EX)
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        folder.chmod(0o755)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _configure(folder)
        stack.callback(_sweep, folder)
        stack.callback(lambda: [path.unlink() for path in _files()])
        munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
        munged += [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        daemons = {"munged": munged, "slurmctld": ["slurmctld", "-D"]}
        daemons |= {f"slurmd-{node}": ["slurmd", "-D", "-N", node] for node in NODES}
        processes = {}

        def start(name: str) -> None:
            with (folder / f"{name}.out").open("ab") as out:
                processes[name] = subprocess.Popen(
                    daemons[name], stdout=out, stderr=out, preexec_fn=_die_with_parent
                )
            (folder / f"{name}.process").write_text(str(processes[name].pid))

        def restart() -> None:
            if processes["slurmctld"].poll() is not None:
                time.sleep(RESTART)
                start("slurmctld")

        def wait(name: str, condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 60
            while not condition():
                if processes[name].poll() is not None or time.monotonic() > deadline:
                    said = (folder / f"{name}.out").read_text()[-2000:]
                    raise SystemExit(f"{name} does not come up:\n{said}")
                time.sleep(0.2)

        stack.callback(_stop, processes)
        start("munged")
        wait("munged", (folder / "munge.socket").exists)
        start("slurmctld")
        wait("slurmctld", lambda: "is UP" in _said("scontrol", "ping"))
        for node in NODES:
            start(f"slurmd-{node}")
        for node in NODES:
            wait(f"slurmd-{node}", lambda node=node: "idle" in _said("sinfo", "-hn", node, "-o%T"))
        yield folder, restart


def _configure(folder: Path) -> None:
    values = {
        "folder": folder,
        "host": _host(),
        "address": socket.gethostbyname(_host()),
        "names": ",".join(NODES),
        "ports": ",".join(str(_free_port()) for _ in NODES),
        "cpus": CPUS,
        "memory": MEMORY,
    }
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    ETC.mkdir(exist_ok=True)
    texts = (SETTINGS.format(**values), GRES.format(**values), "CgroupAutomount=no\n")
    for path, text in zip(_files(), texts, strict=True):
        path.write_text(f"{MARK}\n{text}")


def _files() -> list[Path]:
    return [ETC / f"{name}.conf" for name in ("slurm", "gres", "cgroup")]


def _ours(path: Path) -> bool:
    return MARK in path.read_text()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _stop(processes: dict[str, subprocess.Popen]) -> None:
    """Cancel what is in the queue, whose processes would outlive the daemons, and end those."""
    if jobs := _said("squeue", "-ho", "%A").split():
        _said("scancel", *jobs)
        deadline = time.monotonic() + 30
        while _said("squeue", "-ho", "%A") and time.monotonic() < deadline:
            time.sleep(0.5)
    for process in reversed(processes.values()):
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _sweep(folder: Path) -> None:
    """Kill what outlived its job: without cgroups SLURM loses sight of some processes."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended meanwhile
            if f"TEST_SLURM={folder}\0".encode() in environ.read_bytes():
                os.kill(int(environ.parent.name), signal.SIGKILL)


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except subprocess.TimeoutExpired:
        return ""


def main(command: list[str]) -> int:
    """Run a command with SLURM up and return its exit status; 0 where SLURM cannot run."""
    if reason := obstacle() or install():
        print(f"SLURM: skipped, since {reason}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with running() as (folder, restart):
        child = subprocess.Popen(command, env={**os.environ, "TEST_SLURM": str(folder)})
        try:
            while child.poll() is None:
                restart()
                time.sleep(0.3)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
        return child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
