import math
import pickle
import signal
import threading
import time

import numpy as np
import pytest
import torch

from fomo.config import UserError
from fomo.study.trials import InProcess, OverdueError, alarm, run_trial

CONFIGURATION = {"x": 0.5}


def run(objective, *, medians=None, time_limit=None):
    return run_trial(objective, CONFIGURATION, medians or {}, time_limit)


def raising(error):
    def objective(configuration, report):
        raise error

    return objective


def reporting(losses, objective=0.1):
    """Reports so many (at, loss) and returns `objective`."""

    def function(configuration, report):
        for at, loss in losses.items():
            report(at, loss)
        return {"objective": objective}

    return function


# ---- how a trial ends


def test_row_holds_what_the_objective_returned():
    row = run(lambda configuration, report: {"objective": 2 * configuration["x"], "accuracy": 0.9, "note": "fine"})
    assert row.pop("seconds") >= 0
    assert row == {"status": "complete", "objective": 1.0, "accuracy": 0.9, "note": "fine"}


@pytest.mark.parametrize("value", [3, np.float32(3), np.float64(3), torch.tensor(3.0), torch.tensor([3.0])])
def test_objective_is_a_plain_number_whatever_it_came_as(value):
    row = run(lambda *_: {"objective": value})
    assert (type(row["objective"]), row["objective"]) == (float, 3.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf)])
def test_objective_that_is_not_finite_has_diverged(value):
    row = run(lambda *_: {"objective": value, "accuracy": 0.1})
    assert (row["status"], row["objective"], row["accuracy"]) == ("diverged", math.inf, 0.1)


@pytest.mark.parametrize("error", [ArithmeticError(), ZeroDivisionError("0"), FloatingPointError(), OverflowError()])
def test_error_of_arithmetic_has_diverged(error):
    row = run(raising(error))
    assert (row["status"], row["objective"]) == ("diverged", math.inf)
    assert "error" not in row


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a bug"), "ValueError: a bug"),
        (RuntimeError("CUDA out of memory\nsee above\n"), "RuntimeError: CUDA out of memory"),
        (MemoryError(), "MemoryError: "),
        (KeyError("x"), "KeyError: 'x'"),
        (TimeoutError("the share does not answer"), "TimeoutError: the share does not answer"),
        (AssertionError(), "AssertionError: "),
        (StopIteration(), "StopIteration: "),
    ],
)
def test_any_other_error_fails_the_trial_and_says_which(error, text):
    row = run(raising(error), time_limit=100)
    assert (row["status"], row["objective"], row["error"]) == ("failed", math.inf, text)
    assert row["seconds"] >= 0


@pytest.mark.parametrize("returned", [None, {"loss": 1.0}, {"objective": "low"}, {"objective": None}, 0.5])
def test_objective_that_returns_something_else_fails(returned):
    row = run(lambda *_: returned)
    assert (row["status"], row["objective"]) == ("failed", math.inf)
    assert row["error"]


@pytest.mark.parametrize(
    "error", [UserError("no such folder"), OSError(28, "No space left"), KeyboardInterrupt(), SystemExit(1)]
)
def test_what_the_caller_can_mend_is_raised(error):
    with pytest.raises(type(error)):
        run(raising(error), time_limit=100)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_row_can_be_sent_between_processes():
    row = run(raising(ValueError(lambda: "an error that cannot be pickled")))
    assert pickle.loads(pickle.dumps(row)) == row


# ---- what it reports


def test_reported_losses_are_in_the_row():
    row = run(reporting({0.25: 3.0, 0.5: 2.0, 1: 1.0, 2.0: 0.5}))
    seen = {name: value for name, value in row.items() if name.startswith("after_")}
    assert seen == {"after_0.25": 3.0, "after_0.5": 2.0, "after_1": 1.0, "after_2": 0.5}
    assert (row["status"], row["objective"]) == ("complete", 0.1)
    assert list(row)[-1] == "seconds"


@pytest.mark.parametrize("loss", [np.float32(2.5), torch.tensor(2.5)])
def test_reported_loss_is_a_plain_number(loss):
    assert type(run(reporting({0.5: loss}))["after_0.5"]) is float


@pytest.mark.parametrize("loss", [math.nan, math.inf, torch.tensor(math.nan)])
@pytest.mark.parametrize("medians", [{}, {0.5: 1.0}])
def test_loss_on_the_way_that_is_not_finite_has_diverged(loss, medians):
    row = run(reporting({0.25: 3.0, 0.5: loss, 0.75: 1.0}), medians=medians)
    assert (row["status"], row["objective"]) == ("diverged", math.inf)
    assert [name for name in row if name.startswith("after_")] == ["after_0.25"]


def test_trial_worse_than_the_median_is_ended_there():
    row = run(reporting({0.25: 1.0, 0.5: 2.1, 0.75: 0.1}), medians={0.25: 1.5, 0.5: 2.0, 0.75: 1.0})
    assert (row["status"], row["objective"]) == ("pruned", 2.1)
    assert [name for name in row if name.startswith("after_")] == ["after_0.25", "after_0.5"]


@pytest.mark.parametrize("medians", [{}, {0.25: 2.0, 0.75: 5.0}, {0.5: 2.0}])
def test_trial_as_good_as_the_median_goes_on(medians):
    """Where there is no median, nothing is compared."""
    row = run(reporting({0.25: 2.0, 0.5: 2.0, 1.0: 9.0}), medians=medians)
    assert (row["status"], row["objective"]) == ("complete", 0.1)


@pytest.mark.parametrize("at", [1 / 3, 2 / 3, 1e-7 / 3, 1, 12])
def test_point_of_many_digits_is_compared_with_the_median_of_its_column(at):
    name = next(name for name in run(reporting({at: 1.0})) if name.startswith("after_"))
    assert run(reporting({at: 1.0}), medians={float(name[6:]): 0.9})["status"] == "pruned"


# ---- the time limit


def test_trial_that_hangs_is_ended():
    start = time.monotonic()
    row = run(lambda *_: time.sleep(60), time_limit=0.3)
    assert (row["status"], row["objective"]) == ("timed out", math.inf)
    assert 0.29 < row["seconds"] <= time.monotonic() - start + 0.01 < 50


def test_trial_that_computes_without_end_is_ended_and_what_it_reported_is_kept():
    def objective(configuration, report):
        report(0.25, 1.0)
        while True:
            sum(range(100))

    row = run(objective, time_limit=0.2)
    assert (row["status"], row["after_0.25"]) == ("timed out", 1.0)


@pytest.mark.parametrize(
    "objective", [lambda *_: {"objective": 1.0}, raising(ValueError()), raising(ArithmeticError())]
)
def test_alarm_does_not_ring_after_the_trial(objective):
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        handler = signal.getsignal(signal.SIGALRM)
        run(objective, time_limit=0.05)
        assert signal.getsignal(signal.SIGALRM) is handler
        time.sleep(0.1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not rung


def test_alarm_rings_in_its_block_only():
    with pytest.raises(OverdueError), alarm(0.05):
        time.sleep(60)
    with alarm(None):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("time_limit", [None, 0.01])
def test_other_thread_has_no_alarm_and_no_error(time_limit):
    rows = []

    def work():
        rows.append(run(lambda *_: time.sleep(0.1) or {"objective": 1.0}, time_limit=time_limit))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [row["status"] for row in rows] == ["complete"]


# ---- in this process


def test_executor_in_process_computes_at_once():
    with InProcess() as pool:
        future = pool.submit(lambda a, b: a - b, 5, b=3)
        assert future.done()
        assert future.result() == 2
        with pytest.raises(UserError, match="at once"):
            pool.submit(raising(UserError("at once")), None, None)
