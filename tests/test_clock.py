"""The clock of a run: what is counted, what is decided once, and a training that is made shorter."""

import itertools
from io import StringIO

import pytest

from fomo import clock
from fomo.clock import Clock
from fomo.progress import Bar


@pytest.fixture
def time(monkeypatch):
    """A time that passes only when it is told to: time.now += 3."""

    class Time:
        now, share = 0.0, 1.0  # the share of it that this process has a processor

        def monotonic(self) -> float:
            return self.now

        def thread_time(self) -> float:
            return self.now * self.share

    found = Time()
    monkeypatch.setattr(clock, "time", found)
    return found


def test_time_counts_while_it_runs_and_is_kept_for_the_next_process(tmp_path, time):
    first = Clock(2, tmp_path)
    with first.running():
        time.now += 30
        with first.running():  # a stage within a stage
            time.now += 10
    time.now += 500  # a person thinks
    assert (first.used, first.left) == (40, 80)
    assert Clock(2, tmp_path).used == 40


def test_seconds_before_the_clock_count_and_are_kept(tmp_path, time):
    Clock(10, tmp_path).add(7.0)
    assert Clock(10, tmp_path).used == pytest.approx(7)
    free = Clock(0, tmp_path / "free")
    free.add(7.0)
    assert (free.used, (tmp_path / "free").exists()) == (0, False)


def test_killed_process_loses_at_most_what_was_counted_since_the_last_tick(tmp_path, time):
    killed = Clock(2, tmp_path)
    with killed.running():
        for _ in range(7):
            time.now += 3
            killed.tick()
        time.now += 1
        assert Clock(2, tmp_path).used == 21


def test_what_another_process_has_counted_and_decided_meanwhile_is_taken_over(tmp_path, time):
    clocks = Clock(2, tmp_path), Clock(2, tmp_path)
    for watch in clocks:  # one after the other, as the run's lock has it
        watch.read()
        with watch.running():
            time.now += 30
            watch.decide("epochs", lambda: 7)
    assert (clocks[1].used, clocks[1].decisions) == (60, {"epochs": 7})
    clocks[0].add(5)
    assert Clock(2, tmp_path).used == 65


def test_decision_is_made_once_and_by_every_process_alike(tmp_path):
    number = itertools.count(1)
    assert Clock(2, tmp_path).decide("epochs", lambda: next(number)) == 1
    assert Clock(2, tmp_path).decide("epochs", lambda: next(number)) == 1


def test_run_without_minutes_has_no_limit_and_stores_nothing(tmp_path):
    free = Clock(0, tmp_path)
    with free.running():
        assert (free.decide("epochs", lambda: 7), free.left) == (7, float("inf"))
        assert free.pace("training", lambda: 1.0, 1.0) is None
    assert not list(tmp_path.iterdir())


def walk(pace, time, steps: int, seconds: float, cold: int = 0) -> list[int]:
    """The number of steps in all after each step, each of which takes so many seconds, of the first `cold` 20 times."""
    seen, step = [], 0
    while step < steps:
        steps = pace(step, steps)
        time.now += 20 * seconds if step < cold else seconds
        step += 1
        seen.append(steps)
    return seen


def test_training_that_is_on_time_is_left_as_it_is(tmp_path, time):
    watch = Clock(10, tmp_path)
    with watch.running():
        seen = walk(watch.pace("training", lambda: 101 - watch.used, 100.0), time, 100, 1.0)
    assert seen == [100] * 100
    assert watch.slowness == pytest.approx(1.0)


def test_training_whose_first_steps_are_slow_is_left_as_it_is(tmp_path, time):
    watch = Clock(10, tmp_path)
    with watch.running():
        seen = walk(watch.pace("training", lambda: 120 - watch.used, 100.0), time, 1000, 0.1, cold=3)
    assert seen == [1000] * 1000
    assert watch.slowness == pytest.approx(1.0)


def test_training_on_a_slow_machine_gets_fewer_steps_and_ends_in_time(tmp_path, time):
    watch = Clock(10, tmp_path)
    with watch.running():
        seen = walk(watch.pace("training", lambda: 100 - watch.used, 100.0), time, 100, 2.0)
        assert len(seen) == seen[-1] == 50
        assert watch.used == pytest.approx(100, abs=2)
    assert watch.slowness == pytest.approx(2.0)
    decided = Clock(10, tmp_path).decisions["steps of training"]
    assert decided[-1][1] == 50


@pytest.mark.parametrize(("share", "crowding"), [(1.0, 1.0), (0.5, 2.0), (0.01, 3.0)])
def test_training_tells_how_crowded_the_processors_are(tmp_path, time, share, crowding):
    watch, time.share = Clock(10, tmp_path), share
    with watch.running():
        walk(watch.pace("training", lambda: 200 - watch.used, 100.0), time, 100, 1.0)
    assert watch.crowding == Clock(10, tmp_path).crowding == pytest.approx(crowding)


def test_training_that_becomes_faster_gets_its_steps_back(tmp_path, time):
    watch = Clock(10, tmp_path)
    with watch.running():
        seen = walk(watch.pace("training", lambda: 170 - watch.used, 100.0), time, 1000, 0.1, cold=30)
    assert min(seen) < 500
    assert len(seen) == seen[-1] == 1000
    again = Clock(0, tmp_path)
    assert walk(again.pace("training", lambda: 0.0, 1.0), time, 1000, 0.001) == seen


def test_replayed_training_is_shortened_at_the_same_steps_whatever_the_clock_says(tmp_path, time):
    watch = Clock(10, tmp_path)
    with watch.running():
        seen = walk(watch.pace("training", lambda: 100 - watch.used, 100.0), time, 100, 2.0)
    again = Clock(0, tmp_path)  # a stored plan, no limit
    assert walk(again.pace("training", lambda: 0.0, 1.0), time, 100, 0.001) == seen


def test_progress_bars_tell_of_the_running_clock(tmp_path, time):
    watch, text = Clock(10, tmp_path), StringIO()
    watch.best = "accuracy 0.9"
    with watch.running():
        time.now += 90
        Bar(total=2, desc="training", file=text).close()
    assert "1.5 of 10 minutes, best: accuracy 0.9 | training" in text.getvalue()
    text = StringIO()
    Bar(total=2, desc="training", file=text).close()
    assert text.getvalue().strip("\r\n").startswith("training")
