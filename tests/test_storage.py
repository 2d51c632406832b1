import errno
import os

import numpy as np
import pandas as pd
import pytest
import torch

from fomo.storage import load_state, new_array, read_table, save_state, write_bytes, write_table

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
