import errno
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from fomo.config import UserError
from fomo.storage import Lock, load_state, new_array, read_table, save_state, sweep, write_bytes, write_table

AWKWARD = pd.DataFrame({"x": [0.1 + 0.2, 1e-308, -1 / 3, np.inf, np.nan], "n": [1, 2, 3, 4, 5], "word": list("abcde")})


def fill_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def leave_midway(path):
    with new_array(path, (4, 2), np.float32) as array:
        array[0] = 1
        raise KeyboardInterrupt


def test_table_comes_back_with_the_same_floats_to_the_last_bit(tmp_path):
    write_table(tmp_path / "table.csv", AWKWARD)
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), AWKWARD, check_exact=True)


def test_state_comes_back_with_tensors_and_plain_values(tmp_path):
    save_state(tmp_path / "state.pt", {"weight": torch.arange(3.0), "history": [{"epoch": 1, "loss": 0.1}]})
    state = load_state(tmp_path / "state.pt", torch.device("cpu"))
    assert torch.equal(state["weight"], torch.arange(3.0))
    assert state["history"] == [{"epoch": 1, "loss": 0.1}]


def test_array_comes_back_as_it_was_filled(tmp_path):
    with new_array(tmp_path / "array.npy", (3, 2), np.float32) as array:
        array[:] = [[1, 2], [3, 4], [5, 6]]
    assert np.load(tmp_path / "array.npy").tolist() == [[1, 2], [3, 4], [5, 6]]


def test_interrupted_write_leaves_the_old_content_and_no_rubbish(tmp_path):
    write_bytes(tmp_path / "array.npy", b"old")
    with pytest.raises(KeyboardInterrupt):
        leave_midway(tmp_path / "array.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["array.npy"]
    assert (tmp_path / "array.npy").read_bytes() == b"old"


def test_what_is_no_file_is_not_replaced_and_a_link_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match="is no file that can be replaced"):
            write_bytes(path, b"new")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("file")
    for content in (b"first", b"second"):
        write_bytes(tmp_path / "link", content)
        assert (tmp_path / "file").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 3


def test_full_disk_is_an_error_before_an_array_is_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", fill_disk)
    with pytest.raises(OSError, match="No space left"), new_array(tmp_path / "a.npy", (4, 2), np.float32):
        pytest.fail("the array must not be given out")
    assert list(tmp_path.iterdir()) == []


def test_word_that_pandas_takes_for_a_missing_value_is_kept(tmp_path):
    words = ["NA", "None", "null", "nan", None]
    write_table(tmp_path / "table.csv", pd.DataFrame({"choice": words, "loss": [0.5] * 4 + [np.nan]}))
    table = read_table(tmp_path / "table.csv")
    assert table["choice"].tolist()[:4] == words[:4]
    assert table.isna().sum().tolist() == [1, 1]


# ---- several processes

HOLD = """
import os, sys, time
from pathlib import Path
from fomo.storage import Lock, atomic
with Lock(Path(sys.argv[1]) / "run").held(), atomic(Path(sys.argv[1]) / "table.csv"):
    if os.fork() == 0:  # a worker that outlives it
        print("held", flush=True)
        time.sleep(5)
        os._exit(0)
    time.sleep(float(sys.argv[2]))
"""


def hold(folder, seconds: float) -> subprocess.Popen:
    """A process that has the lock of folder/run and writes folder/table.csv for so many seconds."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_lock_of_a_living_process_is_waited_for_and_its_holder_is_named_once(tmp_path, capsys):
    other, lock = hold(tmp_path, 1.0), Lock(tmp_path / "run")
    for _ in range(2):
        with lock.held(), lock.held():
            assert other.wait(10) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fomo: process {other.pid} on {os.uname().nodename} computes {tmp_path / 'run'}; waiting")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, capsys):
    other = hold(tmp_path, 60.0)
    other.send_signal(signal.SIGKILL)
    other.wait(10)
    begun = time.perf_counter()
    with Lock(tmp_path / "run").held():
        assert time.perf_counter() - begun < 1
    assert capsys.readouterr().err == ""


def test_temporary_file_of_a_living_process_stays_and_that_of_a_dead_one_goes(tmp_path):
    other = hold(tmp_path, 60.0)
    (living,) = tmp_path.glob("*.tmp")
    (tmp_path / ".table.csv.1.tmp").touch()  # the number of a process that lives, but does not write it
    (tmp_path / ".other.csv.1.tmp").touch()
    write_bytes(tmp_path / "table.csv", b"")
    assert {path.name for path in tmp_path.glob("*.tmp")} == {living.name, ".other.csv.1.tmp"}
    sweep(tmp_path)
    assert list(tmp_path.glob("*.tmp")) == [living]
    other.kill()
    other.wait(10)
    sweep(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_written_to_and_nothing_is_removed(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".table.csv.1.tmp").touch()
    with Lock(tmp_path / "run").held(), Lock(tmp_path / "run").held():
        write_bytes(tmp_path / "table.csv", b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", ".table.csv.1.tmp"}


def test_lock_goes_with_what_is_sent_to_a_worker_process(tmp_path):
    lock = Lock(tmp_path / "run")
    with lock.held():
        sent = pickle.loads(pickle.dumps(lock))
        with sent.held():
            assert (tmp_path / ".run.lock").exists()
        assert (tmp_path / ".run.lock").exists()
