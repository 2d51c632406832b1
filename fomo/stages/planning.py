"""Stage 0: the plan. Facts, a contest of frozen networks, what the minutes are spent on, and what is left of them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

import pandas as pd

from fomo.artifacts import Run, Stage
from fomo.networks.weights import OFFLINE, ONLINE, available
from fomo.stages import rules
from fomo.stages.contest import Contest, contest
from fomo.stages.facts import Facts, look
from fomo.stages.forecast import ORDER, SAFETY, epoch, forecast, member, steps
from fomo.stages.inputs import bound_stage, dataset_of
from fomo.storage import read_json, read_table, write_json

CONTEST, WIDE = 0.06, 0.1  # of the minutes: what the contest may take, and, with the fewest images, all its sides
LATE = 1.25  # times what was planned for it: so long may a search take
GENEROUS, LONG = 1.5, 30.0  # times the epochs that fit, in a training of more seconds than that
SHORT = 0.2  # of an epoch: so short a last one is not begun
LEAST = 0.6  # of a further network's training: with less time it is not begun
SEVERAL = 8.0  # minutes from which on more than one network is tried


@dataclass(frozen=True)
class Planned:
    """A plan (`settings`, and `steps`: step, minutes, why), and what it was made of: `facts` and `contest`, None where
    the settings are the preset's."""

    settings: dict
    steps: pd.DataFrame
    facts: Facts | None = None
    contest: Contest | None = None


def plan(run: Run) -> Planned:
    """The plan of a run, whose settings are then the run's: made once, before anything long begins, and stored.

    A run without minutes, or by the stored plan of another run, has its settings already.
    """
    if not run.clock.limited:
        return Planned(asdict(run.config), steps(run.config))
    with run.alone("0_plan"):
        stage = _stage(run)
        if not stage.done:
            run.config = run.before  # it has the settings of a plan that was deleted (FOMO_FRESH) meanwhile
            with run.clock.running():
                _make(run, stage)
                stage.finish()
        settings = run.clock.decisions["settings"]
        run.settle(settings)
        return Planned(settings, stage.table("steps"), load_facts(run), _load_contest(stage))


def _stage(run: Run) -> Stage:
    names = ("seed", "minutes", "metric", "backbone", "weights")
    asked = {f"asked {name}": value for name, value in run.asked.items() if name not in names}
    return bound_stage(run, run.folder / "0_plan", {name: getattr(run.before, name) for name in names} | asked)


def _make(run: Run, stage: Stage) -> None:
    """Makes the plan and stores it."""
    dataset, asked = dataset_of(run), run.before
    facts = look(run, dataset, looked_at(run))
    seconds = 60 * asked.minutes
    sides = [asked.image_size]
    if "image_size" not in run.asked:
        sides = rules.sides(facts, asked, run.clock.left, WIDE * seconds)
    names = rules.networks(facts, sides, CONTEST * seconds)
    found = contest(run, dataset, facts, names, sides, CONTEST * seconds, stage.folder)
    planned = rules.make_plan(facts, found, asked, run.clock.left, run.asked)
    plain = {name: value for name, value in asdict(facts).items() if name != "speeds"}
    write_json(stage.path("facts.json"), plain | {name: getattr(found, name) for name in ("fit", "flip", "cuts")})
    for name, table in (("speeds", facts.speeds), ("contest", found.table), ("turns", found.turns)):
        stage.save_table(name, table)
    stage.save_table("steps", planned.steps)
    settings = planned.settings | run.asked  # whole: who repeats the plan asks for nothing
    run.clock.keep("settings", {name: value for name, value in settings.items() if name != "minutes"})


def looked_at(run: Run) -> list[str]:
    """The networks to look at: the one asked for, or all whose weights are at hand; with few minutes, the first."""
    if "backbone" in run.asked or "weights" in run.asked or run.config.minutes < SEVERAL:
        return [run.config.backbone]
    return [name for name in OFFLINE + ONLINE if available(name)] or [run.config.backbone]


def load_facts(run: Run) -> Facts | None:
    """The facts that the plan of a run was made of; None where it has none."""
    folder = run.folder / "0_plan"
    if not (folder / "facts.json").exists():
        return None
    stored = read_json(folder / "facts.json")
    names = {field.name for field in fields(Facts)}
    return Facts(**{name: stored[name] for name in names if name in stored}, speeds=read_table(folder / "speeds.csv"))


def _load_contest(stage: Stage) -> Contest:
    stored = read_json(stage.path("facts.json"))
    return Contest(stage.table("contest"), stored["fit"], stage.table("turns"), stored["flip"], stored["cuts"])


def settle(run: Run) -> None:
    """Gives a run the settings of its plan, which is made if there is none."""
    if run.clock.limited and not (run.settled and run.finished("0_plan")):
        plan(run)


def planned_seconds(run: Run) -> dict[str, float]:
    """The seconds that each step takes by the plan; none for a run without minutes."""
    facts = load_facts(run) if run.clock.limited else None
    return forecast(facts, run.config) if facts else {}


def reserve(run: Run, step: str) -> float:
    """The seconds that the steps after `step` will take, further networks aside, at the machine's present pace."""
    later = set(ORDER[ORDER.index(step) + 1 :]) - {"train_members"}
    return _at_pace(run, {name: value for name, value in planned_seconds(run).items() if name in later})


def _at_pace(run: Run, seconds: dict[str, float]) -> float:
    """So many planned seconds in sum, at the present pace: that of a network's passes. The pages have none; they take
    longer where other programs keep the processors busy."""
    crowding = run.clock.crowding if run.device.type == "cpu" else 1.0  # who waits for a GPU needs no processor
    return sum(value * (crowding if name == "pages" else run.clock.slowness) for name, value in seconds.items())


def budget(run: Run, step: str) -> Callable[[], bool]:
    """Whether a step has taken `LATE` times what was planned for it, and must end; never, without minutes."""
    seconds, begun = planned_seconds(run).get(step), run.clock.used
    return lambda: seconds is not None and run.clock.used - begun > LATE * seconds


def in_time(run: Run, step: str) -> bool:
    """Whether there is time for a step, as it was planned, and for those after it."""
    own = {step: planned_seconds(run).get(step, 0.0)}
    return run.clock.left > _at_pace(run, own) + reserve(run, step)


def pace(run: Run, step: str, name: str, parts: int = 1) -> Callable[[int, int], int] | None:
    """The `pace` of one of the trainings (`parts` of them) that a step consists of: `LATE` times what was planned."""
    begun, seconds = run.clock.used, planned_seconds(run).get(step, 0.0) / parts
    return run.clock.pace(name, lambda: LATE * seconds - (run.clock.used - begun), seconds)


def last_pace(run: Run, step: str, name: str) -> tuple[int, Callable[[int, int], int] | None]:
    """The epochs of a network of the final model, and the `pace` of its training, which leaves the seconds that the
    steps after it take.

    The plan's epochs, or, where more or less time is left than was planned, as many as fit beside the further networks.
    A training of more than some seconds gets more than that, for the machine may be faster than it was when it was
    timed: its pace, which is known after the first steps, cuts off what does not fit.
    """
    seconds, facts = planned_seconds(run), load_facts(run)
    further = seconds.get("train_members", 0.0) if step != "train_members" else 0.0

    def left() -> float:
        return run.clock.left - reserve(run, step) - further * run.clock.slowness

    if not run.clock.limited:
        return run.clock.decisions.get("epochs", run.config.epochs), run.clock.pace(name, left, 1.0)

    def epochs() -> int:
        if "epochs" in run.asked:
            return run.config.epochs
        each = epoch(facts, run.config) * SAFETY * run.clock.slowness
        free = left()
        fitting = free / each * (GENEROUS if free > LONG else 1.0)
        return int(min(max(1, math.ceil(fitting - SHORT)), rules.enough_epochs(facts, run.config)))

    number = run.clock.decide("epochs", epochs)
    return number, run.clock.pace(name, left, number * epoch(facts, run.config))


def another(run: Run, number: int, *, pays: bool) -> bool:
    """Whether the network of this number (2, 3, ...) is trained: by the settings, or, in a run with minutes, while
    there is time for `LEAST` of its training, if the first one `pays` (it is as good as the probe)."""
    if not run.clock.limited:
        return run.clock.decisions.get(f"network {number}", number <= run.config.members)

    def fits() -> bool:
        own = replace(run.config, members=number, epochs=run.clock.decisions["epochs"])
        facts, later = load_facts(run), ("compose", "evaluate", "suspects", "pages")
        seconds, each = forecast(facts, own), member(facts, own)
        left = run.clock.left - _at_pace(run, {name: seconds[name] for name in later})
        return pays and number <= rules.MOST_MEMBERS and left > LEAST * each * run.clock.slowness

    return run.clock.decide(f"network {number}", fits)
