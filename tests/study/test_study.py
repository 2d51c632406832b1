import concurrent.futures
import itertools
import math
import os
import signal
import threading
import time
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
import pandas as pd
import pytest

from fomo.config import UserError
from fomo.storage import read_table, write_table
from fomo.study import pool
from fomo.study import study as tuning
from fomo.study.space import Choice, Float, Space
from fomo.study.study import PRUNE_FROM, Study
from fomo.study.surrogate import Surrogate
from fomo.study.trials import InProcess

SPACE = Space(
    lr=Float(1e-6, 1e-1, log=True),
    momentum=Float(0.1, 0.9, when=("optimizer", "sgd")),
    weight_decay=Float(0.0, 1e-2),
    optimizer=Choice(("adam", "sgd", "rmsprop")),
    layer=Choice((2, 3, 4)),
)
FIRST = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0, "optimizer": "sgd", "layer": 4}
PLANE = Space(x=Float(0.0, 1.0), y=Float(0.0, 1.0))
CENTRE = {"x": 0.5, "y": 0.5}


def loss(configuration, report=None):
    """A made-up validation loss: best at a learning rate of 1e-3, adam and layer 2."""
    value = abs(math.log10(configuration["lr"]) + 3) + {"adam": 0, "sgd": 0.5, "rmsprop": 1}[configuration["optimizer"]]
    return {
        "objective": value + 0.1 * configuration["layer"] + (configuration["momentum"] or 0),
        "train_loss": value / 3,
    }


def bowl(point, report=None):
    return {"objective": 3 * (point["x"] - 0.7) ** 2 + (point["y"] - 0.2) ** 2}


def converging(point, report):
    """Reports a loss that comes down to that of `bowl`, plus 1: what it reports on the way is smaller than that."""
    value = bowl(point)["objective"]
    for at in (0.25, 0.5, 0.75):
        report(at, value * (1 + 0.1 * math.sin(9 * point["x"] / at)))
    return {"objective": value + 1, "accuracy": 1 - value}


def failing(trial, outcome, objective=loss):
    """`objective`, but for one trial whose outcome is another: a number, or an exception to raise."""
    calls = itertools.count()

    def function(configuration, report):
        if next(calls) != trial:
            return objective(configuration, report)
        if isinstance(outcome, float):
            return {"objective": outcome}
        raise outcome

    return function


def new_study(path, seed=0, space=SPACE, first=FIRST, initial=4):
    return Study(space, path, seed=seed, first=first, initial=initial)


def plane_study(path, initial=100):
    return new_study(path, 0, PLANE, CENTRE, initial)


def assert_same(study, other):
    """The same table, bit by bit, but for the time that it took."""
    tables = [table.trials.drop(columns="seconds") for table in (study, other)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trials.csv"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = new_study(tmp_path_factory.mktemp("study") / "trials.csv")
    study.run(loss, 8)
    return study


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    study = plane_study(tmp_path_factory.mktemp("pruned") / "trials.csv", initial=8)
    study.run(converging, 20, prune=True)
    return study


# ---- trials


def test_first_trial_is_the_given_one(finished):
    assert finished.configuration(0) == FIRST


def test_there_are_as_many_trials_as_asked_for(finished):
    assert finished.trials["trial"].tolist() == list(range(8))
    assert (finished.trials["status"] == "complete").all()


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_numbers_stay_within_bounds(finished, name):
    assert finished.trials[name].dropna().between(SPACE[name].low, SPACE[name].high).all()


@pytest.mark.parametrize("name", ["optimizer", "layer"])
def test_choices_are_of_the_space(finished, name):
    assert set(finished.trials[name]) <= set(SPACE[name].choices)


def test_momentum_acts_under_sgd_only(finished):
    assert finished.trials["momentum"].notna().equals(finished.trials["optimizer"] == "sgd")
    assert finished.trials["optimizer"].nunique() > 1


def test_configuration_has_plain_values_as_the_space_names_them(finished):
    for trial in finished.trials["trial"]:
        configuration = finished.configuration(trial)
        assert list(configuration) == list(SPACE)
        assert {type(value) for value in configuration.values()} <= {float, int, str, type(None)}
        assert loss(configuration)["objective"] == finished.trials.loc[trial, "objective"]


def test_values_of_every_kind_survive_the_table(path):
    """Also whole numbers in a column with gaps, words that look like numbers, words and numbers in one column."""
    space = Space(
        kind=Choice(("mlp", "linear")),
        width=Choice((8, 64, 512), when=("kind", "mlp")),
        rate=Choice(("none", 0.1, 0.5)),
        version=Choice(("1", "2")),
        bias=Choice((True, False)),
    )
    first = {"kind": "mlp", "width": 64, "rate": 0.1, "version": "1", "bias": True}
    asked = []
    new_study(path, 0, space, first).run(lambda asked_for, _: asked.append(asked_for) or {"objective": len(asked)}, 6)
    study = new_study(path, 0, space, first)
    stored = [study.configuration(trial) for trial in range(6)]
    assert stored == asked
    assert [[*map(type, one.values())] for one in stored] == [[*map(type, one.values())] for one in asked]
    assert {None} < {one["width"] for one in stored}
    study.run(lambda *_: {"objective": 0.0}, 7)


def test_initial_design_covers_the_space(path):
    study = plane_study(path, initial=17)
    study.run(bowl, 17)
    quarters = (study.trials[["x", "y"]][1:] > 0.5).value_counts()
    assert quarters.tolist() == [4, 4, 4, 4]


def test_best_and_top_agree(finished):
    objective = finished.trials["objective"]
    assert finished.best["objective"] == objective.min()
    assert finished.top(3)["objective"].tolist() == sorted(objective)[:3]
    assert len(finished.complete) == len(finished.top(99)) == 8


def test_suggest_tells_the_next_configuration(finished, path):
    study = new_study(path)
    for trial in (0, 1, 5):
        if trial:
            study.run(loss, trial)
        assert study.suggest() == finished.configuration(trial)


def test_table_on_disk_is_that_in_memory_bit_by_bit(finished, tmp_path):
    stored = read_table(finished.path)
    pd.testing.assert_frame_equal(stored, finished.trials, check_exact=True)
    write_table(tmp_path / "again.csv", stored)
    assert (tmp_path / "again.csv").read_bytes() == finished.path.read_bytes()


# ---- interruptions


@pytest.mark.parametrize("trial", [0, 4, 7])
def test_killed_study_goes_on_as_if_it_had_not_been(finished, path, trial):
    with pytest.raises(KeyboardInterrupt):
        new_study(path).run(failing(trial, KeyboardInterrupt()), 8)
    resumed = new_study(path)
    assert len(resumed.trials) == trial
    resumed.run(loss, 8)
    assert_same(resumed, finished)


def test_study_resumed_after_each_trial_makes_the_same_suggestions(finished, path):
    for trials in range(1, 9):
        new_study(path).run(loss, trials)
    assert_same(new_study(path), finished)


def test_losses_of_single_precision_do_not_change_a_resumed_study(path, tmp_path):
    def single(configuration, report):
        return {"objective": np.float32(bowl(configuration)["objective"])}

    whole, parts = plane_study(path, initial=3), tmp_path / "parts.csv"
    whole.run(single, 8)
    for trials in (1, 4, 8):
        plane_study(parts, initial=3).run(single, trials)
    assert_same(plane_study(parts, initial=3), whole)


def test_finished_study_runs_no_trial(finished):
    new_study(finished.path).run(failing(0, KeyboardInterrupt("no trial was due")), 8)


def test_longer_study_begins_as_the_shorter(finished, path):
    study = new_study(path)
    study.run(loss, 6)
    pd.testing.assert_series_equal(study.trials["lr"], finished.trials["lr"][:6], check_exact=True)


@pytest.mark.parametrize("seed", [1, 20261123])
def test_another_seed_makes_other_trials(finished, path, seed):
    study = new_study(path, seed=seed)
    study.run(loss, 5)
    assert (study.trials["lr"][1:] != finished.trials["lr"][1:5]).all()


# ---- a file that was cut


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A finished study of 8 trials, the last but one failed; and its objective."""
    study = plane_study(tmp_path_factory.mktemp("cut") / "trials.csv")
    study.run(converging, 8)
    bad = study.configuration(6)

    def objective(point, report):
        if point == bad:
            raise ValueError('a "bug", with a comma')
        return converging(point, report)

    study.path.unlink()
    study = plane_study(study.path)
    study.run(objective, 8, prune=True)
    assert study.trials["status"].tolist()[:5] == ["complete"] * 5
    assert study.trials["status"][6] == "failed"
    return study, objective


def test_study_cut_anywhere_in_its_last_two_lines_loses_those_and_comes_to_the_same_end(cut, path):
    study, objective = cut
    content = study.path.read_bytes()
    lines = content.splitlines(keepends=True)
    last, last_but_one = len(content) - len(lines[-1]), len(content) - len(lines[-1]) - len(lines[-2])
    seen = {}
    for end in range(last_but_one, len(content) + 1):
        path.write_bytes(content[:end])
        resumed = plane_study(path)
        assert len(resumed.trials) == (8 if end == len(content) else 7 if end >= last else 6)
        if not resumed.trials.equals(seen.get(len(resumed.trials))):
            seen[len(resumed.trials)] = resumed.trials
            resumed.run(objective, 8, prune=True)
            assert_same(resumed, study)
    assert len(seen) == 3
    assert plane_study(path).trials["error"].dropna().tolist() == ['ValueError: a "bug", with a comma']


@pytest.mark.parametrize("line", [5, 6, 7])
def test_study_cut_while_its_surrogate_leads_makes_the_same_suggestions(finished, path, line):
    lines = finished.path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: line + 1]) + lines[line + 1][:20])
    resumed = new_study(path)
    assert len(resumed.trials) == line
    resumed.run(loss, 8)
    assert_same(resumed, finished)


@pytest.mark.parametrize("end", ["nothing", "half the header", "header", "header and line break", "half the first"])
def test_study_without_a_whole_trial_starts_anew(cut, path, end):
    study, objective = cut
    content = study.path.read_bytes()
    header = content.index(b"\n")
    ends = {"nothing": 0, "half the header": 20, "header": header, "header and line break": header + 1}
    path.write_bytes(content[: ends.get(end, header + 20)])
    resumed = plane_study(path)
    assert len(resumed.trials) == 0
    resumed.run(objective, 8, prune=True)
    assert_same(resumed, study)
    assert resumed.path.read_bytes().splitlines()[0] == content[:header]


# ---- trials that come to nothing


@pytest.mark.parametrize(
    ("trial", "outcome"), [(0, math.nan), (1, math.inf), (5, -math.inf), (5, ArithmeticError()), (0, ArithmeticError())]
)
def test_trial_that_diverges_is_marked_and_the_study_goes_on(path, trial, outcome):
    study = new_study(path)
    study.run(failing(trial, outcome), 7)
    assert (study.trials["status"] == "diverged").tolist() == [number == trial for number in range(7)]
    assert study.trials["objective"][trial] == math.inf
    assert math.isfinite(study.best["objective"])
    assert trial not in study.top(99)["trial"].tolist()


@pytest.mark.parametrize(
    ("trial", "error"), [(0, RuntimeError("out of memory")), (5, ValueError("a bug")), (5, KeyError("x"))]
)
def test_trial_that_fails_is_marked_with_its_error_and_the_study_goes_on(path, trial, error):
    study = new_study(path)
    study.run(failing(trial, error), 7)
    assert (study.trials["status"] == "failed").tolist() == [number == trial for number in range(7)]
    assert study.trials["error"].dropna().tolist() == [f"{type(error).__name__}: {error}"]
    pd.testing.assert_frame_equal(read_table(path), study.trials, check_exact=True)


@pytest.mark.parametrize("error", [UserError("no such folder"), KeyboardInterrupt("stop")])
@pytest.mark.parametrize("executor", [InProcess, partial(ThreadPoolExecutor, 2)])
def test_what_the_caller_can_mend_is_raised_and_other_trials_are_kept(path, error, executor):
    with pytest.raises(type(error), match=str(error)):
        new_study(path).run(failing(2, error), 7, executor=executor)
    assert len(new_study(path).trials) == 2


@pytest.mark.parametrize("trials", [1, 2, 6])
def test_study_of_which_no_trial_is_completed_says_why(path, trials):
    def objective(configuration, report):
        raise RuntimeError("CUDA out of memory")

    tried = min(trials, 4)
    message = rf"none of the {tried} trials in .*trials.csv.*: {tried} failed \(RuntimeError: CUDA out of memory\)"
    with pytest.raises(UserError, match=message):
        new_study(path).run(objective, trials)
    assert len(read_table(path)) == tried


def test_study_whose_trials_all_diverge_says_so(path):
    with pytest.raises(UserError, match="4 diverged; where they diverge, lower the learning rates"):
        new_study(path).run(lambda *_: {"objective": math.nan}, 7)


def test_completed_trial_late_in_the_initial_design_is_enough(path):
    outcomes = itertools.chain([math.nan] * 3, itertools.count(1.0))
    study = new_study(path)
    study.run(lambda *_: {"objective": next(outcomes)}, 7)
    assert study.trials["status"].tolist() == ["diverged"] * 3 + ["complete"] * 4


def hang_at_first(configuration, report=None):
    """Hangs for the first configuration, where an alarm can wake it."""
    if configuration == CENTRE:
        time.sleep(60)
    return bowl(configuration)


def test_trial_that_hangs_is_ended(path):
    study = plane_study(path)
    study.run(hang_at_first, 4, time_limit=0.3)
    assert study.trials["status"].tolist() == ["timed out", "complete", "complete", "complete"]
    assert study.trials["seconds"][0] < 30


# ---- pruning


def test_hopeless_trials_are_ended_by_the_median_rule(pruned):
    table = pruned.trials
    columns = ["after_0.25", "after_0.5", "after_0.75"]
    for number, row in table.iterrows():
        before, expected = table[:number], "complete"
        for column in columns:
            if before[column].count() >= PRUNE_FROM and row[column] > before[column].median():
                expected = "pruned"
                assert row["objective"] == row[column]
                assert row[columns[columns.index(column) + 1 :]].isna().all()
                break
        assert row["status"] == expected
    assert set(table["status"]) == {"complete", "pruned"}
    assert (table["status"][:PRUNE_FROM] == "complete").all()


def test_pruned_trial_is_never_the_best(pruned):
    ended = pruned.trials[pruned.trials["status"] == "pruned"]
    assert ended["objective"].min() < pruned.complete["objective"].min()  # on the way, all losses are lower here
    assert pruned.best["status"] == "complete"
    assert (pruned.top(99)["status"] == "complete").all()
    assert len(pruned.top(99)) == len(pruned.trials) - len(ended)


def test_pruned_trial_counts_as_the_median_at_least(pruned, monkeypatch):
    seen = []

    def keep(space, configurations, losses, **options):
        seen.append(losses)
        return Surrogate(space, configurations, losses, **options)

    monkeypatch.setattr(tuning, "Surrogate", keep)
    pruned.suggest()
    ended, median = pruned.trials["status"] == "pruned", pruned.complete["objective"].median()
    own = pruned.trials["objective"]
    assert seen[0][ended].tolist() == [max(value, median) for value in own[ended]]
    assert seen[0][~ended].tolist() == own[~ended].tolist()


@pytest.mark.parametrize("trial", [7, 19])
def test_killed_study_with_pruning_goes_on_as_if_it_had_not_been(pruned, path, trial):
    with pytest.raises(KeyboardInterrupt):
        plane_study(path, 8).run(failing(trial, KeyboardInterrupt(), converging), 20, prune=True)
    resumed = plane_study(path, 8)
    assert len(resumed.trials) == trial
    resumed.run(converging, 20, prune=True)
    assert_same(resumed, pruned)
    pd.testing.assert_frame_equal(read_table(path), resumed.trials, check_exact=True)


def test_without_pruning_every_trial_comes_to_its_end(path):
    study = plane_study(path, initial=8)
    study.run(converging, 20)
    assert (study.trials["status"] == "complete").all()
    assert study.trials.filter(like="after_").notna().all(axis=None)


def test_trials_are_measured_by_those_that_came_to_the_same_point(path):
    """Four have reported at 0.5, all of them good: too few to end another there."""
    losses = iter([[1.0], [1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 9.0], [1.0, 9.0], [2.0]])

    def objective(configuration, report):
        for number, value in enumerate(next(losses), start=1):
            report(number / 4, value)
        return {"objective": 1.0}

    study = plane_study(path)
    study.run(objective, 9, prune=True)
    assert study.trials["status"].tolist() == ["complete"] * 7 + ["pruned"] * 2
    assert study.trials["after_0.5"].count() == 6


# ---- batches


def in_batches(sizes, objective=bowl):
    def function(configurations):
        sizes.append(len(configurations))
        return [objective(configuration) for configuration in configurations]

    return function


def test_batches_are_of_the_asked_size_and_fill_the_table(path):
    sizes, study = [], plane_study(path, initial=5)
    study.run_batches(in_batches(sizes), 11, 4)
    assert sizes == [4, 4, 3]
    assert study.trials["trial"].tolist() == list(range(11))
    assert [bowl(study.configuration(n))["objective"] for n in range(11)] == study.trials["objective"].tolist()
    assert len(study.trials[["x", "y"]].drop_duplicates()) == 11
    pd.testing.assert_frame_equal(read_table(path), study.trials, check_exact=True)


def test_killed_study_in_batches_goes_on_as_if_it_had_not_been(path, tmp_path):
    whole, calls = plane_study(tmp_path / "whole.csv", initial=5), itertools.count()
    whole.run_batches(in_batches([]), 11, 4)

    def interrupted(configurations):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return [bowl(configuration) for configuration in configurations]

    with pytest.raises(KeyboardInterrupt):
        plane_study(path, 5).run_batches(interrupted, 11, 4)
    assert len(plane_study(path, 5).trials) == 8
    plane_study(path, 5).run_batches(in_batches([]), 11, 4)
    assert_same(plane_study(path, 5), whole)


def test_trial_of_a_batch_that_diverges_is_marked(path):
    def objective(point):
        return {"objective": math.nan} if point == CENTRE else bowl(point)

    study = plane_study(path, initial=3)
    study.run_batches(in_batches([], objective), 6, 3)
    assert study.trials["status"].tolist() == ["diverged"] + ["complete"] * 5
    assert study.trials["objective"][0] == math.inf


# ---- workers


def leave_mark(folder, name):
    """How many marks of that name there were."""
    marks = len(list(folder.glob(f"{name}-*")))
    (folder / f"{name}-{marks}-{os.getpid()}").touch()
    return marks


def die_at_first(folder, times, configuration, report):
    """The worker dies the first `times` times that it meets the first configuration."""
    if configuration == CENTRE and leave_mark(folder, "died") < times:
        os._exit(1)
    leave_mark(folder, f"x{configuration['x']}")
    return bowl(configuration)


def hang_for_good(folder, configuration, report):
    """For the first configuration the worker hangs where no alarm reaches it, as in a library's C code."""
    if configuration == CENTRE:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        leave_mark(folder, "hangs")
        time.sleep(600)
    return bowl(configuration)


def refuse(configuration, report):
    raise UserError("the folder is gone")


def fail_at_first(configuration, report):
    if configuration == CENTRE:
        raise RuntimeError("out of memory")
    return bowl(configuration)


THREADS = partial(ThreadPoolExecutor, 3)


def numbers(study):
    return sorted(study.trials["trial"])


def test_one_worker_of_a_pool_makes_the_same_table(finished, processes, path):
    study = new_study(path)
    study.run(loss, 8, executor=processes)
    assert_same(study, finished)


def test_one_worker_of_a_pool_prunes_the_same_trials(pruned, processes, path):
    study = plane_study(path, 8)
    study.run(converging, 20, prune=True, executor=processes)
    assert_same(study, pruned)


@pytest.mark.parametrize("kind", ["processes", "threads", "in process"])
def test_workers_share_the_trials(processes, path, kind):
    executor, workers = {"processes": (processes, 2), "threads": (THREADS, 3), "in process": (InProcess, 3)}[kind]
    study = plane_study(path, initial=5)
    study.run(bowl, 14, executor=executor, workers=workers)
    assert numbers(study) == list(range(14))
    assert (study.trials["status"] == "complete").all()
    assert len(study.trials[["x", "y"]].drop_duplicates()) == 14
    for trial, objective in zip(study.trials["trial"], study.trials["objective"], strict=True):
        assert bowl(study.configuration(trial))["objective"] == objective
    pd.testing.assert_frame_equal(read_table(path), study.trials, check_exact=True)


def test_as_many_trials_run_at_once_as_there_are_workers(path):
    """No more, and no fewer: each waits until three have come."""
    barrier, lock, running, most = threading.Barrier(3, timeout=30), threading.Lock(), [], []

    def objective(configuration, report):
        with lock:
            running.append(1)
            most.append(len(running))
        barrier.wait()
        with lock:
            running.pop()
        return bowl(configuration)

    study = plane_study(path)
    study.run(objective, 3, executor=partial(ThreadPoolExecutor, 9), workers=3)
    assert max(most) == 3
    assert (study.trials["status"] == "complete").all()


def test_rows_are_in_the_order_in_which_trials_end(path):
    others = threading.Semaphore(0)

    def objective(configuration, report):
        if configuration == CENTRE:  # ends after all others have
            for _ in range(6):
                assert others.acquire(timeout=30)
            time.sleep(0.2)
        others.release()
        return bowl(configuration)

    study = plane_study(path)
    study.run(objective, 7, executor=THREADS, workers=3)
    assert study.trials["trial"].iloc[-1] == 0
    assert numbers(study) == list(range(7))


def test_study_killed_with_several_workers_numbers_its_trials_without_gaps(path):
    others = threading.Semaphore(0)
    calls = itertools.count()

    def objective(configuration, report):
        if configuration == CENTRE:
            others.acquire(timeout=30)
        elif next(calls) == 3:
            raise KeyboardInterrupt
        return bowl(configuration)

    study = plane_study(path)
    with pytest.raises(KeyboardInterrupt):
        study.run(objective, 9, executor=THREADS, workers=2)
    others.release()
    resumed = plane_study(path)
    assert 0 not in resumed.trials["trial"].tolist()
    resumed.run(bowl, 9, executor=THREADS, workers=2)
    assert numbers(resumed) == list(range(9))


def test_trials_under_way_are_known_to_the_surrogate(path):
    """With two workers, the second suggestion is not the first once more."""
    study, again = plane_study(path, initial=4), plane_study(path.with_name("again.csv"), initial=4)
    for one in (study, again):
        one.run(bowl, 4)
    first = study.suggest()
    again.run(bowl, 6, executor=InProcess, workers=2)
    assert again.configuration(4) == first
    assert math.dist(again.configuration(5).values(), first.values()) > 0.02


def test_error_in_a_worker_fails_its_trial_only(processes, path):
    study = plane_study(path)
    study.run(fail_at_first, 5, executor=processes, workers=2)
    ends = study.trials.set_index("trial")["status"]
    assert ends.sort_index().tolist() == ["failed"] + ["complete"] * 4
    assert study.trials["error"].dropna().tolist() == ["RuntimeError: out of memory"]


def test_error_in_a_worker_that_the_caller_can_mend_is_raised(processes, path):
    with pytest.raises(UserError, match="the folder is gone"):
        plane_study(path).run(refuse, 5, executor=processes, workers=2)
    assert not path.exists()


@pytest.mark.parametrize("executor", ["pickle", "threads"])
def test_objective_that_cannot_be_sent_to_a_worker_says_so(processes, path, executor):
    """And does not try for ever. A thread needs no pickling."""
    study = plane_study(path, initial=4)
    if executor == "threads":
        study.run(lambda *_: {"objective": 1.0}, 4, executor=THREADS)
        return
    with pytest.raises(UserError, match=r"(?i)none of the 4 trials .* 4 failed \(.*pickle"):
        study.run(lambda *_: {"objective": 1.0}, 20, executor=processes, workers=2)


def test_worker_that_dies_costs_its_trial_one_more_run(processes, path, tmp_path):
    study = plane_study(path)
    study.run(partial(die_at_first, tmp_path, 1), 6, executor=processes, workers=2)
    assert len(list(tmp_path.glob("died-*"))) == 2
    assert numbers(study) == list(range(6))
    assert (study.trials["status"] == "complete").all()
    alone = plane_study(tmp_path / "alone.csv")
    alone.run(bowl, 6)
    tables = [one.trials.drop(columns="seconds").sort_values("trial", ignore_index=True) for one in (study, alone)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_trial_whose_worker_dies_twice_has_failed_and_the_others_are_unharmed(processes, path, tmp_path):
    study = plane_study(path)
    study.run(partial(die_at_first, tmp_path, 99), 6, executor=processes, workers=2)
    assert len(list(tmp_path.glob("died-*"))) == 2
    ends = study.trials.sort_values("trial", ignore_index=True)
    assert ends["status"].tolist() == ["failed"] + ["complete"] * 5
    assert ends["error"][0].startswith("BrokenProcessPool: ")
    assert ends["error"][1:].isna().all()
    for trial in range(1, 6):
        assert 1 <= len(list(tmp_path.glob(f"x{study.configuration(trial)['x']}-*"))) <= 2


class Fragile(InProcess):
    """Breaks at the submission that comes third, as a pool does of which a worker dies while no one is looking."""

    def __init__(self, made):
        made.append(self)
        self.submitted = 0

    def submit(self, *task):
        self.submitted += 1
        if self.submitted == 3:
            raise BrokenProcessPool("a worker died")
        return super().submit(*task)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_pool_that_breaks_between_trials_is_replaced(path, tmp_path, workers):
    made, study, alone = [], plane_study(path), plane_study(tmp_path / "alone.csv")
    study.run(bowl, 7, executor=partial(Fragile, made), workers=workers)
    alone.run(bowl, 7)
    assert_same(study, alone)
    assert len(made) == 4


class BreaksAtFirst(ThreadPoolExecutor):
    """A pool whose first four trials die together; it works from then on."""

    left = 4

    def submit(self, *task):
        if BreaksAtFirst.left == 0:
            return super().submit(*task)
        BreaksAtFirst.left -= 1
        future = Future()
        if BreaksAtFirst.left == 0:
            for one in (*self.waiting, future):
                one.set_exception(BrokenExecutor("a worker died"))
        self.waiting = [*getattr(self, "waiting", ()), future]
        return future


def test_time_limit_of_a_trial_that_is_run_again_begins_with_that_run(path, monkeypatch):
    monkeypatch.setattr(pool, "GRACE", 0.8)
    study = plane_study(path)
    task = lambda configuration, report: time.sleep(0.4) or bowl(configuration)  # noqa: E731
    study.run(task, 4, executor=partial(BreaksAtFirst, 4), workers=4, time_limit=0.5)
    assert study.trials["status"].tolist() == ["complete"] * 4


def test_worker_process_that_hangs_ends_its_trial_itself(processes, path):
    study = plane_study(path)
    study.run(hang_at_first, 5, executor=processes, workers=2, time_limit=0.3)
    assert numbers(study) == list(range(5))
    ends = study.trials.set_index("trial")["status"]
    assert ends.sort_index().tolist() == ["timed out"] + ["complete"] * 4


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_worker_process_that_no_alarm_reaches_is_given_up_and_killed(processes, path, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "GRACE", 3.0)
    study = plane_study(path)
    study.run(partial(hang_for_good, tmp_path), 5, executor=processes, workers=2, time_limit=0.3)
    ends = study.trials.set_index("trial")["status"]
    assert ends.sort_index().tolist() == ["timed out"] + ["complete"] * 4
    (mark,) = tmp_path.glob("hangs-*")
    pid = int(mark.name.split("-")[-1])
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.1)
    assert not alive(pid)


def test_thread_that_hangs_is_given_up_after_a_while_and_the_others_are_unharmed(path, monkeypatch):
    monkeypatch.setattr(pool, "GRACE", 0.3)
    release = threading.Event()

    def objective(configuration, report):
        if configuration == CENTRE:
            release.wait(60)
        return bowl(configuration)

    study = plane_study(path)
    try:
        study.run(objective, 8, executor=THREADS, workers=3, time_limit=0.5)
    finally:
        release.set()
    assert numbers(study) == list(range(8))
    ends = study.trials.set_index("trial")
    assert ends["status"].sort_index().tolist() == ["timed out"] + ["complete"] * 7
    assert ends.loc[0, "seconds"] == 0.8


def test_trial_that_waits_behind_one_that_hangs_is_run_all_the_same(path, monkeypatch):
    """Two workers are promised, but the pool has one thread."""
    monkeypatch.setattr(pool, "GRACE", 0.0)
    release, started = threading.Event(), threading.Event()

    def objective(configuration, report):
        if configuration == CENTRE:
            started.set()
            release.wait(60)
        return bowl(configuration)

    original, queued = Study._next, []

    def delayed(self, pending):
        if len(queued) == 1:  # the second trial comes much later than the first, whose time is up long before
            started.wait(60)
            time.sleep(0.4)
        queued.append(1)
        return original(self, pending)

    def wait(futures, *args):
        assert not any(future.cancelled() for future in futures)  # of which it would never hear
        return concurrent.futures.wait(futures, *args)

    monkeypatch.setattr(Study, "_next", delayed)
    monkeypatch.setattr(pool, "wait", wait)
    study = plane_study(path)
    try:
        study.run(objective, 2, executor=partial(ThreadPoolExecutor, 1), workers=2, time_limit=0.6)
    finally:
        release.set()
    assert study.trials.set_index("trial")["status"].sort_index().tolist() == ["timed out", "complete"]


# ---- the surrogate


def test_study_beats_random_search(tmp_path):
    found, random = [], []
    for seed in range(5):
        study = new_study(tmp_path / f"{seed}.csv", seed, PLANE, {"x": 0.0, "y": 1.0}, initial=5)
        study.run(bowl, 12)
        found.append(study.best["objective"])
        points = np.random.default_rng(seed).random((200, 12, 2))
        random.append(np.mean([min(bowl({"x": x, "y": y})["objective"] for x, y in draw) for draw in points]))
    assert np.mean(found) < 0.5 * np.mean(random)


def test_slices_show_every_parameter_with_its_band(finished):
    table = finished.slices(count=5)
    assert table.groupby("parameter").size().to_dict() == {
        "lr": 5,
        "momentum": 5,
        "weight_decay": 5,
        "optimizer": 3,
        "layer": 3,
    }
    bands = table[["low", "median", "high"]].to_numpy(dtype=float)
    assert np.isfinite(bands).all()
    assert (np.diff(bands) > 0).all()
    assert table[table["parameter"] == "layer"]["value"].tolist() == ["2", "3", "4"]


def test_slices_go_through_the_incumbent(path):
    study = plane_study(path, initial=12)
    study.run(bowl, 14)
    table, best = study.slices(count=101), study.best
    for name in PLANE:
        part = table[table["parameter"] == name]
        near = (part["value"].astype(float) - best[name]).abs().idxmin()
        assert part["median"][near] == pytest.approx(best["objective"], abs=0.05)


def test_slice_of_a_conditional_parameter_is_taken_where_it_acts(path):
    """Adam is best here, and yet the slice of the momentum is one under sgd."""
    study = new_study(path, initial=25)
    study.run(loss, 25)
    assert study.best["optimizer"] == "adam"
    part = study.slices(count=9).query("parameter == 'momentum'")
    assert part["median"].iloc[-1] - part["median"].iloc[0] > 0.2


def test_slices_and_importance_tell_what_matters(path):
    study = plane_study(path, initial=12)
    study.run(lambda point, report: {"objective": 5 * point["x"]}, 12)
    spread = study.slices(count=5).groupby("parameter")["median"].agg(np.ptp)
    assert spread["x"] == pytest.approx(5, abs=0.5)
    assert spread["y"] < 0.5
    importance = study.importance()
    assert importance["parameter"].tolist() == ["x", "y"]
    assert importance["importance"].tolist() == pytest.approx([1, 0], abs=0.05)


def test_slices_and_importance_allow_for_trials_that_came_to_nothing(pruned, path):
    study = new_study(path)
    study.run(failing(2, ArithmeticError()), 6)
    for one in (study, pruned):
        assert np.isfinite(one.slices(count=3)[["low", "median", "high"]].to_numpy(dtype=float)).all()
        assert one.importance()["importance"].is_monotonic_decreasing
