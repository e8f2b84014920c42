"""Fresh processes without the seconds that importing torch takes: each is forked from one that has imported it.

Where a test needs a process of its own, for a signal, a peak of memory, a limit of the system or a training of several
processes, what counts is that nothing of the tests is in it. A process that has imported the libraries and computed
nothing is that beginning: each `Fresh.start` forks it, so that no case meets what another has left. `python -m medunet`
itself is started by a few tests as a user would.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300.0
"""Seconds after which a process that does not end is killed, and its test fails."""

LIBRARIES = (
    "medunet.cli", "medunet.train_network", "medunet.prediction.segmenter", "torch._dynamo", "tensorboard.summary",
    "torch.utils.tensorboard", "matplotlib.backends.backend_agg", "matplotlib.figure", "medunet.formats.nifti",
    "jinja2",
)  # fmt: skip


MEDUNET = "from medunet.cli import main\nmain()"
PLAIN = """
from medunet.cli import main
from tests.flows.made import running_plainly
with running_plainly():
    main()
"""


@dataclass
class Ended:
    """What a process left, by the names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Running:
    """A process under way; its output goes to files, so that it never waits for a reader."""

    pid: int
    folder: Path
    found: Ended | None = field(default=None, repr=False)

    def poll(self) -> int | None:
        """The exit code, the negative number of the signal that killed it, or None while it runs."""
        code = self.folder / "code"
        if self.found is None and code.exists():
            texts = ((self.folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
            self.found = Ended(int(code.read_text()), *texts)
        return None if self.found is None else self.found.returncode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        until = time.monotonic() + LIMIT
        while self.poll() is None:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"process {self.pid} did not end in {LIMIT:g} seconds; see {self.folder}")
            time.sleep(0.005)
        assert self.found is not None
        return self.found


class Fresh:
    """A process that has imported the libraries, and starts others."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.fresh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def start(self, code: str, *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Running:
        """A process that runs some Python with these arguments in `sys.argv`, in this process' environment.

        Args:
            env: instead of this process' environment.
        """
        self._count += 1
        place = self._folder / str(self._count)
        place.mkdir()
        assert self._server.stdin is not None and self._server.stdout is not None
        order = {"code": code, "arguments": arguments, "cwd": str(cwd), "place": str(place)}
        print(
            json.dumps(order | {"env": dict(os.environ if env is None else env)}), file=self._server.stdin, flush=True
        )
        return Running(int(self._server.stdout.readline()), place)

    def run(self, code: str, *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Ended:
        return self.start(code, *arguments, cwd=cwd, env=env).wait()

    def medunet(self, *arguments: str, env: Mapping[str, str] | None = None, plain: bool = False) -> Running:
        """A process that does what `medunet` with these arguments does; `plain` as in `running_plainly`."""
        return self.start(PLAIN if plain else MEDUNET, *arguments, env=env)

    def pair(self, code: str, *arguments: str) -> Ended:
        """Two processes told of each other as torchrun tells them; what both said, and their common exit code."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            told["MASTER_PORT"] = str(free.getsockname()[1])
        environments = ({**os.environ, **told, "RANK": n, "LOCAL_RANK": n, "OMP_NUM_THREADS": "1"} for n in "01")
        started = [self.start(code, *arguments, env=environment) for environment in environments]
        first, second = (process.wait() for process in started)
        assert first.returncode == second.returncode, first.stderr + second.stderr
        return Ended(first.returncode, first.stdout + second.stdout, first.stderr + second.stderr)

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.communicate(timeout=LIMIT)


def fresh_processes(folder: Path) -> Fresh:
    """One for the tests; they skip, saying so, where processes cannot be forked."""
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot be forked here")
    return Fresh(folder)


def serve() -> None:
    """Fork a process for each order that comes, and write down how it ended; until no order can come any more."""
    for name in LIBRARIES:
        __import__(name)
    gc.freeze()  # what was imported is no garbage, and looking through it would copy its pages in each process
    for line in sys.stdin:
        order = json.loads(line)
        # The process in between lives as long as its child and tells its end, so that several can run at once.
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            pid = os.fork()
            if pid == 0:
                os.close(writer)
                _become(order)
            os.write(writer, str(pid).encode())
            os.close(writer)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            place = Path(order["place"])
            (place / "unfinished").write_text(str(code))
            (place / "unfinished").rename(place / "code")
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            print(told.read(), flush=True)
        _bury()


def _bury() -> None:
    """Take note of helpers that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _become(order: dict) -> None:
    """Be the process that was ordered, and end as an interpreter does."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(order["place"], name), os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = ["-c", *order["arguments"]]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        exec(compile(order["code"], "<fresh>", "exec"), module.__dict__)  # noqa: S102
    finally:
        gc.freeze()
    sys.exit(0)


if __name__ == "__main__":
    serve()
