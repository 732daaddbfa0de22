"""A place for a submission: it reads the system and the interpreter, and writes nothing that stays.

With bubblewrap a submission sees no network, no other file, no other process, and nothing of it is
alive afterwards. Where bubblewrap is missing, or user namespaces are not permitted, it runs in an
empty folder with limits; `Sandbox.unprotected` says what that does not give.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/hosts",
          "/etc/alternatives", "/etc/fonts")  # fmt: skip
MARK = "ICRL_SUBMISSION"
PLACE, HOME = "/place", "/home/student"
INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one submission may use.

    Parameters
    ----------
    seconds : int
        Wall-clock time; it may use as much CPU time in one process.
    memory : int
        Bytes of address space of one process, and of resident memory of all together.
    processes : int
        Processes at a time.
    disk : int
        Bytes that it may write: to one file or, in the sandbox, in all.
    output : int
        Bytes of answers that are read.
    """

    seconds: int = 120
    memory: int = 8 * 2**30
    processes: int = 64
    disk: int = 64 * 2**20
    output: int = 32 * 2**20


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of a submission.

    Parameters
    ----------
    output : bytes
        What it has answered, JSON lines.
    ended : str
        Empty if it came to its end; otherwise in words why not.
    """

    output: bytes
    ended: str


class Sandbox:
    """Where submissions run.

    Parameters
    ----------
    limits : Limits
        What each may use.
    bubblewrap : str or None, optional
        The program; by default the one that is installed, if it works here.
    """

    def __init__(self, limits: Limits, bubblewrap: str | None = "bwrap") -> None:
        self.limits = limits
        self.stop = threading.Event()
        self._library = _library()
        self._inside = Path(__file__).with_name("inside.py").read_bytes()
        found = shutil.which(bubblewrap) if bubblewrap else None
        self.bubblewrap = found
        self.why = "bubblewrap (bwrap) is not installed" if bubblewrap else "it is switched off"
        if found is not None:
            said = _does_it_work(found)
            if said is not None:
                self.bubblewrap, self.why = None, f"bubblewrap does not work here: {said}"

    @property
    def unprotected(self) -> tuple[str, ...]:
        """What a submission can do because there is no sandbox; empty if there is one."""
        if self.bubblewrap:
            return ()
        return (
            "read every file that you can read: other submissions, masters with solutions, keys",
            "write and delete every file that you can write, these grades included",
            "use the network",
            "leave processes behind that have detached themselves and cleared their environment",
            "fill the disk with many files",
        )

    def run(self, task: bytes) -> Run:
        """Run one task, a JSON document for `inside.py`, and return what it has answered."""
        with tempfile.TemporaryDirectory(
            prefix="submission-", ignore_cleanup_errors=True
        ) as folder:
            place = Path(folder).resolve()
            for name, content in self._library.items():
                path = place / "library" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            (place / "task.json").write_bytes(task)
            (place / "inside.py").write_bytes(self._inside)
            if not self.bubblewrap:
                (place / "work").mkdir()
            try:
                return self._run(place)
            finally:
                _let_delete(place)

    def _run(self, place: Path) -> Run:
        read, write = os.pipe()
        name = place.name
        programs = f"{Path(sys.executable).parent}:{os.defpath}"
        environment = {"LANG": "C.UTF-8", "PATH": programs, "TZ": "UTC", "PIP_NO_INDEX": "1",
                       "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", MARK: name}  # fmt: skip
        inner, own = (PLACE, HOME) if self.bubblewrap else (str(place), str(place / "work"))
        environment |= {"HOME": own, "TMPDIR": own, "IPYTHONDIR": own}
        limits = (self.limits.seconds, self.limits.memory, self.limits.disk)
        command = [sys.executable, "-I", "-B", "-W", "ignore", f"{inner}/inside.py", inner,
                   own, str(write), *map(str, limits)]  # fmt: skip
        if self.bubblewrap:
            command = [*_wrapped(self.bubblewrap, place, environment, self.limits.disk), *command]
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(write,),
            start_new_session=True,
        )  # fmt: skip
        os.close(write)
        try:
            return self._watch(process, read)
        finally:
            os.close(read)
            _end(process, name if not self.bubblewrap else "")

    def _watch(self, process: subprocess.Popen[bytes], read: int) -> Run:
        """Read answers until the end, or until a limit is passed."""
        os.set_blocking(read, False)
        output, until = bytearray(), time.monotonic() + self.limits.seconds
        looked = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(read, selectors.EVENT_READ)
            open_ = True
            while True:
                ended = process.poll() is not None
                if open_ and (ended or selector.select(0.1)):
                    open_ = _drain(read, output, self.limits.output)
                elif not open_:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.1)
                if len(output) > self.limits.output:
                    return Run(b"", "it answers with more than can be read")
                if ended:
                    return Run(bytes(output), _last_words(process.returncode, self.limits))
                if self.stop.is_set():
                    return Run(b"", INTERRUPTED)
                if time.monotonic() > until:
                    return Run(
                        bytes(output),
                        f"stopped after {self.limits.seconds} s; does a cell loop for ever?",
                    )
                if time.monotonic() > looked + 0.5:
                    looked = time.monotonic()
                    if (problem := self._too_much(process)) is not None:
                        return Run(bytes(output), problem)

    def _too_much(self, process: subprocess.Popen[bytes]) -> str | None:
        family = _family(process)
        if len(family) > self.limits.processes:
            return f"stopped: more than {self.limits.processes} processes at a time"
        used = 0
        for member in family:
            with contextlib.suppress(psutil.Error):
                used += member.memory_info().rss
        gigabytes = self.limits.memory / 2**30
        return (
            f"stopped: more than {gigabytes:g} GB of memory" if used > self.limits.memory else None
        )


def _drain(read: int, output: bytearray, limit: int) -> bool:
    """Read what is there, up to the limit; return whether more can come."""
    while len(output) <= limit:
        try:
            piece = os.read(read, 2**16)
        except BlockingIOError:
            return True
        if not piece:
            return False
        output += piece
    return True


def _last_words(code: int, limits: Limits) -> str:
    if code == 0:
        return ""
    number = -code if code < 0 else code - 128
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return f"it was killed; did it use more than {limits.seconds} s of CPU time?"
    names = {s.value: s.name for s in signal.Signals}
    return f"Python ended with {names.get(number, f'status {code}')} before the questions"


@functools.lru_cache(maxsize=1)
def _library() -> dict[str, bytes]:
    """Return the library's files as they are when grading begins."""
    files = [*(ROOT / "icrl_lib").rglob("*.py"), *(ROOT / "icrl_lib").rglob("*.sheet")]
    return {str(path.relative_to(ROOT)): path.read_bytes() for path in files}


def _wrapped(program: str, place: Path, environment: Mapping[str, str], disk: int) -> list[str]:
    """Return the command that builds a sandbox around what follows it."""
    command = [program, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
               "--uid", "65534", "--gid", "65534", "--clearenv"]  # fmt: skip
    for name, value in environment.items():
        command += ["--setenv", name, value]
    space = ["--size", str(disk), "--tmpfs"]
    command += ["--proc", "/proc", "--dev", "/dev", *space, "/dev/shm", *space, "/tmp"]
    for path in SYSTEM:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    for path in _interpreter():  # perhaps below /tmp: what comes later lies on top
        command += ["--ro-bind", path, path]
    command += ["--ro-bind", str(place), PLACE, *space, HOME]
    command += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return [*command, "--chdir", HOME, "--"]


def _interpreter() -> list[str]:
    """Return the folders of the interpreter and its packages that are not part of the system."""
    folders = {str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix)}
    folders |= {sys.prefix, str(Path(os.path.realpath(sys.executable)).parent)}
    outside = [f for f in sorted(folders) if not any(Path(f).is_relative_to(s) for s in SYSTEM)]
    return [f for f in outside if not any(f != o and Path(f).is_relative_to(o) for o in outside)]


@functools.lru_cache(maxsize=4)
def _does_it_work(program: str) -> str | None:
    """Return what bubblewrap says if it cannot run Python in a sandbox, or None."""
    with tempfile.TemporaryDirectory() as place:
        command = [*_wrapped(program, Path(place), {"PATH": os.defpath}, 2**20)]
        command += [sys.executable, "-I", "-c", "import encodings"]
        try:
            run = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    said = run.stderr.strip().splitlines() or [f"status {run.returncode}"]
    return None if run.returncode == 0 else said[-1]


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End a submission with all its descendants and, without a sandbox, those that were adopted."""
    family = _family(process)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if mark:
        for other in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if other.environ().get(MARK) == mark:
                    family.append(other)
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()
    process.wait()


def _let_delete(place: Path) -> None:
    """Give back the rights that a submission may have taken from its folders."""
    for folder, names, _ in os.walk(place):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
