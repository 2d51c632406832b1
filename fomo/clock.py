"""The minutes of a run: what is used, what is left, and what has been decided by them."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from fomo.progress import Bar
from fomo.storage import read_json, write_json

EVERY = 2.0  # seconds between two writes of the count: what a kill can lose of it
CHECKS = 5.0  # seconds between two looks of a training at the clock
SLOWNESS = (0.5, 5.0)  # the least and the most that is believed
CROWDING = 3.0  # the most that is believed
SLACK = 0.02  # of what a training takes: so much too long is left as it is


class Clock:
    """Counts the seconds that a run computes, in all its processes together, and stores what is decided by them.

    `minutes` is what the run may take in all; 0: as long as it takes. Time counts while `running`, so a notebook may
    rest between two cells. A decision is made once, and stored before it acts: a run that goes on after a kill, and one
    that replays a stored plan, decide the same.
    """

    def __init__(self, minutes: float, folder: Path):
        self.minutes = minutes
        self._count, self._decided = folder / "clock.json", folder / "plan.json"
        self.best = ""  # what the best model so far is worth, as text
        self._since: float | None = None  # when the clock was started
        self.read()

    def read(self) -> None:
        """Takes over what is stored: another process may have gone on with the run."""
        self.decisions = read_json(self._decided) if self._decided.exists() else {}
        if self._since is None:
            stored = {"seconds": 0.0, "slowness": 1.0, "crowding": 1.0}
            stored |= read_json(self._count) if self._count.exists() else {}
            self._before, self.slowness = stored["seconds"], stored["slowness"]  # how much slower it is than was timed
            self.crowding = stored["crowding"]  # how much longer it takes than it has a processor
            self._written = self._before

    @property
    def limited(self) -> bool:
        return self.minutes > 0

    @property
    def used(self) -> float:
        """The seconds that the run has computed so far."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    @property
    def left(self) -> float:
        """The seconds that are left; infinite where there is no limit."""
        return 60 * self.minutes - self.used if self.limited else float("inf")

    @contextmanager
    def running(self):
        """Time counts in the block; blocks may lie in each other."""
        if not self.limited or self._since is not None:
            yield
            return
        self._since, Bar.status = time.monotonic(), self.status
        try:
            yield
        finally:
            Bar.status = staticmethod(str)
            self._before, self._since = self.used, None
            self.tick(always=True)

    def status(self) -> str:
        """The minutes used, of how many, and the best so far."""
        text = f"{self.used / 60:.1f} of {self.minutes:g} minutes"
        return f"{text}, best: {self.best}" if self.best else text

    def add(self, seconds: float) -> None:
        """Counts seconds that were spent before the clock was there: Python has to load what it needs."""
        self.read()
        self._before += seconds if self.limited else 0.0
        self.tick(always=True)

    def tick(self, *, always: bool = False) -> None:
        """Stores the count, but not more often than is needed."""
        if self.limited and (always or self.used - self._written >= EVERY):
            self._written = self.used
            self._count.parent.mkdir(parents=True, exist_ok=True)
            stored = {"seconds": self.used, "slowness": self.slowness, "crowding": self.crowding}
            write_json(self._count, stored)

    def decide(self, name: str, make: Callable[[], object]) -> object:
        """What was decided under `name`, or, if nothing was, what `make` gives, which is stored. A run without minutes
        or a plan has nothing to decide."""
        if name not in self.decisions:
            if not self.limited:
                return make()
            self.keep(name, make())
        return self.decisions[name]

    def keep(self, name: str, value: object) -> None:
        """Stores a decision."""
        self.decisions[name] = value
        self._decided.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._decided, self.decisions)
        self.tick(always=True)

    def pace(self, name: str, left: Callable[[], float], seconds: float) -> Callable[[int, int], int] | None:
        """The `pace` of a training (`loop.fit`) that has `left()` seconds from now on, and was planned to take so many
        `seconds` on an idle machine; None where nothing limits it."""
        pace = Pace(self, name, left, seconds)
        return pace if self.limited or pace.name in self.decisions else None


class Pace:
    """Asked before each step for the number of steps of a training in all: fewer where the time would not do, and more
    again, up to what was planned, where it is faster after all.

    What it changes is stored as pairs (step, steps in all), and done again at the same steps by whoever repeats the
    training.
    """

    def __init__(self, clock: Clock, name: str, left: Callable[[], float], seconds: float):
        self.clock = clock
        self.name = f"steps of {name}"
        self.left = left
        self.seconds = seconds
        self.most = 0  # steps, as planned
        self.planned = 0.0  # seconds a step
        self.begun: tuple[int, float, float] | None = None  # a step, the seconds used then, those of a processor
        self.warm = False  # the first steps are slow, on a GPU by far: they are not measured
        self.looked = 0.0

    def __call__(self, step: int, steps: int) -> int:
        clock, cuts = self.clock, self.clock.decisions.get(self.name, [])
        for at, total in cuts:
            if at == step:
                return total
        clock.tick()
        if self.begun is None:
            self.begun, self.looked = self._now(step), clock.used
            self.most = cuts[0][1] if cuts else steps
            self.planned = self.seconds / self.most
        if not clock.limited or clock.used - self.looked < CHECKS or (cuts and step < cuts[-1][0]):
            return steps
        self.looked = clock.used
        if not self.warm:
            self.begun, self.warm = self._now(step), True
            return steps
        taken, busy = (now - before for now, before in zip(self._now(step)[1:], self.begun[1:], strict=True))
        clock.crowding = min(max(taken / max(busy, 1e-9), 1.0), CROWDING)
        each = taken / (step - self.begun[0])
        clock.slowness = min(max(each / self.planned, SLOWNESS[0]), SLOWNESS[1])
        fitting = min(step + max(1, int(self.left() / each)), self.most)
        if abs(fitting - steps) <= SLACK * (steps - step):
            return steps
        clock.keep(self.name, [*(cuts or [(0, self.most)]), (step, fitting)])
        return fitting

    def _now(self, step: int) -> tuple[int, float, float]:
        return step, self.clock.used, time.thread_time()
