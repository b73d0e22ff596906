"""Several builders with one cache: who waits, who is killed, what is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import vlmc
from vlmc.workspace import Workspace

SOURCE = str(Path(vlmc.__file__).parents[1])


PROGRAM = """
import sys, time
from pathlib import Path
from vlmc.workspace import Workspace

root, log, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def tell(event):
    if event.kind == "notice":
        print(event.message, flush=True)

def fn(folder):
    with log.open("a") as file:
        file.write("run\\n")
    (folder / "half").write_text("x")
    if mode == "hang":
        print("building", flush=True)
        time.sleep(60)
    time.sleep(0.5)
    (folder / "whole").write_text("y")

artifact = Workspace(root, tell).step("race", fn, options={}, code=1)
print(artifact.digest, artifact.hit, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def run(mode):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "cache"), str(tmp_path / "log"), mode],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def finish(process):
    out, _ = process.communicate(timeout=60)
    return out.splitlines()


def runs(tmp_path):
    return (tmp_path / "log").read_text().count("run")


def test_two_processes_make_a_result_once(tmp_path, start):
    outs = [finish(process) for process in [start("race") for _ in range(3)]]
    assert runs(tmp_path) == 1
    assert len({out[-1].split()[0] for out in outs}) == 1
    assert sorted(out[-1].split()[1] for out in outs) == ["False", "True", "True"]


def test_a_killed_builder_frees_its_key_and_leaves_no_entry(tmp_path, start):
    killed = start("hang")
    assert killed.stdout.readline().strip() == "building"
    waiting = start("race")
    assert waiting.stdout.readline().strip() == "another build is making it"
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    (line,) = finish(waiting)
    assert line.endswith("False")
    assert runs(tmp_path) == 2
    (entry,) = (tmp_path / "cache" / "entries").iterdir()
    assert sorted(path.name for path in (entry / "files").iterdir()) == ["half", "whole"]
    assert not list((tmp_path / "cache" / "partial").iterdir())


def test_what_a_killed_builder_left_is_swept_and_what_a_live_one_builds_is_not(tmp_path, start):
    killed = start("hang")
    assert killed.stdout.readline().strip() == "building"
    partial = tmp_path / "cache" / "partial"
    Workspace(tmp_path / "cache")
    assert len(list(partial.iterdir())) == 1
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert len(list(partial.iterdir())) == 1
    Workspace(tmp_path / "cache")
    assert not list(partial.iterdir())
    assert not list((tmp_path / "cache" / "entries").iterdir())


def test_ctrl_c_leaves_nothing(tmp_path, start):
    process = start("hang")
    assert process.stdout.readline().strip() == "building"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert not list((tmp_path / "cache" / "partial").iterdir())
    assert not list((tmp_path / "cache" / "entries").iterdir())


def test_threads_of_one_process_wait_for_each_other_too(tmp_path):
    built = []

    def build():
        def fn(folder):
            built.append(1)
            time.sleep(0.2)
            (folder / "x").write_text("x")

        Workspace(tmp_path).step("race", fn, options={}, code=1)

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]
