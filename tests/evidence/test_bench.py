import runpy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fomo.__main__ import main
from fomo.data.batches import FeatureBatches, ImageBatches, loader
from fomo.evidence import bench, bench_table
from fomo.evidence.bench_memory import memory, peak
from fomo.networks.bank import HeadBank
from fomo.networks.heads import LINEAR, Head
from fomo.storage import new_array, read_json, read_table, release
from fomo.training.loop import DivergedError


@pytest.fixture
def big(tmp_path) -> np.ndarray:
    """80 MB of stored pixels as a memory map: 2000 images."""
    with new_array(tmp_path / "pixels.npy", (2000, 1, 200, 200), np.uint8) as store:
        store[:] = 7
        release(store)
    return np.load(tmp_path / "pixels.npy", mmap_mode="r")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder in place of data/results."""
    monkeypatch.setattr(bench_table, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The measurements in place of which numbers are given: each adds its name here when it is made."""
    made = []

    def stand_in(module, name: str, result) -> None:
        monkeypatch.setattr(module, name, lambda *_: made.append(name) or result)

    rates = [("store, augmented", 300.0), ("files, augmented", 200.0), ("training, bare", 60.0)]
    stand_in(bench, "loading", pd.DataFrame(rates, columns=["what", "images/s"]))
    rates = [("feature extraction", 95.0), ("forward passes, bare", 100.0)]
    stand_in(bench, "extraction", pd.DataFrame(rates, columns=["what", "images/s"]))
    rates = [("prediction", 90.0), ("forward passes, bare", 100.0)]
    stand_in(bench, "prediction", pd.DataFrame(rates, columns=["what", "images/s"]))
    heads = {"what": ["the 37 heads"], "bank, s": [2.0], "one by one, s": [8.0], "ratio": [4.0]}
    heads |= {"one by one, one thread, s": [6.0], "ratio, one thread": [3.0], "share of product rate": [0.4]}
    stand_in(bench, "heads", pd.DataFrame(heads))
    grown = {"memory": ["private"], "images": [10], "more": [100], "MB": [200.0], "MB at more": [220.0], "ratio": [1.1]}
    stand_in(bench_table, "memory", pd.DataFrame(grown))
    return made


# ---- rates


@pytest.fixture
def once(monkeypatch):
    """Everything is timed once, after the round that does not count."""
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr(bench, "BATCHES", 2)


def test_loading_is_told_as_rates_and_as_shares_of_training(copied, once):
    table = bench.loading(copied)
    assert table["what"].tolist() == ["store, augmented", "files, augmented", "training, bare"]
    assert table["share of training"].tolist() == pytest.approx((table["images/s"][2] / table["images/s"]).tolist())


def test_extraction_is_told_as_a_share_of_the_bare_passes_and_leaves_nothing(copied, once):
    before = sorted(copied.folder.iterdir())
    table = bench.extraction(copied)
    assert table["what"].tolist() == ["feature extraction", "forward passes, bare"]
    rates = table["images/s"]
    assert table["share of bare passes"].tolist() == pytest.approx([rates[0] / rates[1], 1])
    assert sorted(copied.folder.iterdir()) == before


def test_prediction_is_timed_beside_the_passes_of_the_same_model(copied, once):
    table = bench.prediction(copied, 70)
    assert table["what"].tolist() == ["prediction", "forward passes, bare"]
    assert (table["images/s"] > 0).all()


def test_heads_in_a_bank_are_timed_beside_the_same_heads_one_after_another(monkeypatch):
    """With made-up seconds: of the bank, of one head after another, of the same on one thread, of a large product."""
    monkeypatch.setattr(bench, "REPEATS", 1)
    seconds = iter([9.0, 9.0, 9.0, 9.0, 2.0, 8.0, 6.0, 0.001])
    clock, rounds = [0.0], []

    def now() -> float:
        rounds.append(len(rounds))
        if len(rounds) % 2 == 0:
            clock[0] += next(seconds)
        return clock[0]

    inputs, labels = np.zeros((20, 4), np.float32), np.arange(20) % 3
    batches = FeatureBatches(inputs, labels)
    bank = HeadBank([LINEAR, Head(5, "ReLU", 2)], 4, 3)
    adam = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0}
    monkeypatch.setattr(bench, "fit_bank", lambda *_, **__: None)
    monkeypatch.setattr(bench.time, "perf_counter", now)
    monkeypatch.setattr(bench, "fit", diverge)
    row = bench._compare(bank, [adam] * 2, (loader(batches, 10, torch.Generator()), loader(batches, 10)))
    assert (row["ratio"], row["ratio, one thread"]) == (4, 3)
    # Of each image: 4 x 3 and 4 x 5 weights of first layers twice, 5 x 3 of another layer thrice.
    assert row["share of product rate"] == pytest.approx(20 * (2 * 12 + 2 * 20 + 3 * 15) / 2 / (2048**3 / 0.001))


def test_rows_on_heads_are_of_the_37_and_of_the_trials_of_one_head_in_two_widths(monkeypatch):
    counts = lambda bank, configurations, _: {"heads": len(bank.heads), "trained": len(configurations)}  # noqa: E731
    monkeypatch.setattr(bench, "_compare", counts)
    table = bench.heads(images=20, features=4, classes=3, batch_size=10).set_index("what")
    assert table.index.tolist() == ["the 37 heads", "30 trials of 32 ReLU x2", "30 trials of 256 ReLU x2"]
    assert table["heads"].tolist() == table["trained"].tolist() == [37, 30, 30]


def diverge(*_, **__):
    raise DivergedError("one head that diverges does not end the others")


# ---- memory


def test_peak_tells_what_is_held_for_a_moment():
    before = peak(list)
    held = peak(lambda: torch.ones(100_000_000).sum())  # 400 MB, of which earlier tests may have left some
    assert held["private"] - before["private"] > 200
    assert held["resident"] - before["resident"] > 200


def test_pages_of_a_file_are_resident_but_not_private_until_they_are_released(big):
    before, read = peak(list), peak(lambda: big.sum())
    assert read["resident"] - before["resident"] > 60
    assert read["private"] - before["private"] < 20
    release(big)
    assert peak(list)["resident"] - before["resident"] < 20
    assert (big[[0, 1999]] == 7).all()


def test_what_is_not_a_memory_map_cannot_be_released(big):
    for array in (np.ones(3), np.array(big[:2]), big[5:7]):
        release(array)
        assert (array == array.ravel()[0]).all()


def test_batches_leave_no_image_in_memory(big):
    batches = ImageBatches(big, range(len(big)), [0] * len(big), (0.5,) * 3, (0.5,) * 3)

    def read_all() -> None:
        for start in range(0, len(big), 20):
            batches[list(range(start, start + 20))]

    peak(batches.__getitem__, list(range(20)))
    assert peak(read_all)["resident"] - peak(list)["resident"] < 40


def test_memory_is_measured_in_processes_of_their_own(monkeypatch, capsys):
    """Here what they would run runs in this process, one after another."""
    started = []

    def run(command, env, **_):
        started.append(command[:3])
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command[2:])
            for name in ("FOMO_RUNS", "FOMO_FRESH"):
                patch.setenv(name, env[name])
            capsys.readouterr()
            sys.modules.pop(command[2], None)
            runpy.run_module(command[2], run_name="__main__")
        return SimpleNamespace(stdout=capsys.readouterr().out)

    monkeypatch.setattr(subprocess, "run", run)
    table = memory(20, 2, 32).set_index("memory")
    assert started == [[sys.executable, "-m", "fomo.evidence.bench_memory"]] * 2
    assert table["images"].tolist() == [20, 20]
    assert table["more"].tolist() == [40, 40]
    assert (table[["MB", "MB at more"]] > 50).all(axis=None)
    assert table["ratio"].tolist() == pytest.approx((table["MB at more"] / table["MB"]).tolist())


# ---- the table


def test_table_has_a_row_for_each_comparison_and_its_ratio(counted, kept):
    text = bench_table.gather()
    table = read_table(kept / "bench.csv").set_index("what")
    assert counted == ["loading", "extraction", "prediction", "heads", "memory"]
    assert table["ratio"].tolist() == pytest.approx([1.5, 5.0, 0.95, 0.9, 4.0, 3.0, 1.1])
    assert all(what in text for what in table.index)
    machine = read_json(kept / "bench_machine.json")
    assert machine["cores"] >= 1
    assert machine["threads"] == torch.get_num_threads()


def test_of_another_data_set_the_images_are_timed_and_nothing_is_stored(counted, kept, dataset, capsys):
    assert main(["bench", "--dataset", str(dataset), "--image-size", "32"]) == 0
    assert counted == ["loading", "extraction"]
    assert "feature extraction, against bare forward passes, 32 px" in capsys.readouterr().out
    assert not (kept / "bench.csv").exists()
