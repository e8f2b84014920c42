"""Processes that are forked are as good as started ones: code, arguments, outputs, exit codes, signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.fresh import Fresh

pytestmark = pytest.mark.slow


def test_what_is_printed_and_the_exit_code_come_back(fresh: Fresh, tmp_path: Path) -> None:
    code = "import os, sys\nprint(sys.argv[1:], os.getcwd(), os.environ['COLOUR'])\nsys.exit('no ' + __name__)"
    ended = fresh.run(code, "a", "b c", cwd=tmp_path, env={**os.environ, "COLOUR": "blue"})
    assert (ended.returncode, ended.stderr) == (1, "no __main__\n")
    assert ended.stdout == f"['a', 'b c'] {tmp_path} blue\n"


@pytest.mark.parametrize(("code", "returned", "said"), [("", 0, ""), ("import sys\nsys.exit(3)", 3, ""),
                                                         ("raise ValueError('x')", 1, "ValueError: x")])  # fmt: skip
def test_endings_are_those_of_an_interpreter(fresh: Fresh, code: str, returned: int, said: str) -> None:
    ended = fresh.run(code)
    assert ended.returncode == returned and said in ended.stderr and ended.stdout == ""


def test_no_process_sees_what_another_did(fresh: Fresh) -> None:
    code = "import torch\nprint(torch.initial_seed(), hasattr(torch, 'left'))\ntorch.left = torch.manual_seed(7)"
    first, second = fresh.run(code), fresh.run(code)
    assert first.stdout == second.stdout and "False" in first.stdout


def test_several_run_at_once_and_each_hears_its_own_signal(fresh: Fresh) -> None:
    waiting = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\nprint('here', flush=True)\nsignal.pause()"
    one, other = fresh.start(waiting), fresh.start(waiting)
    for process in (one, other):
        while not (process.folder / "stdout").exists() or not (process.folder / "stdout").read_text():
            assert process.poll() is None
    other.send_signal(signal.SIGTERM)
    assert other.wait().returncode == -signal.SIGTERM and one.poll() is None
    one.send_signal(signal.SIGTERM)
    assert one.wait().returncode == -signal.SIGTERM and one.wait().stdout == "here\n"


def test_the_command_line_runs_in_one(fresh: Fresh) -> None:
    ended = fresh.medunet("train").wait()
    assert ended.returncode == 2 and "Usage: " in ended.stderr
