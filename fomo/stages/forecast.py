"""What each step of a run takes, by what was timed, and the table of it: pure functions of facts and settings."""

import numpy as np
import pandas as pd

from fomo.config import Config
from fomo.stages.facts import Facts
from fomo.training.logistic import MOST, MOST_TO_CHOOSE

# What a step takes besides the passes of the network, measured on two cores of an AMD EPYC; seconds.
START = 1.5  # of each training: the network is built, its first steps are slow
LOOKED_AT = 20_000  # images at most that are searched for wrong labels
LOOKING = 0.01  # of the minutes: what that may take, if more than a thousand are
PAGES = 24.0  # of the notebooks and their pages; two of them are left out where nothing is searched
SAFETY = 1.08  # what is planned is this much longer than what was timed

ORDER = (
    *("preprocess", "probe", "finetune", "optimize_finetuning", "race", "finetune_best", "extract_features"),
    *("search_head", "tune_head", "train_head", "train_members", "compose", "evaluate", "suspects", "pages"),
)


def forecast(facts: Facts, config: Config) -> dict[str, float]:
    """The seconds that each step will take, by name, for a run of these settings."""
    side, network = config.image_size, config.backbone
    share = config.validation_share
    train, validation = facts.train * (1 - share), facts.train * share
    forward = facts.pace(network, side, "forward")
    views = min({"none": 1, "horizontal": 2, "both": 4}[config.flip], config.views)
    heads = facts.bank(network)
    seen = min(train, config.head_images or train) / config.batch_size  # batches of an epoch of a head
    trial_side = config.trial_size or side
    judges = min(validation, max(1000, validation * config.trial_share))
    pruned = 0.75 if config.prune else 1.0
    trial = START + config.trial_epochs * config.trial_share * train / facts.pace(network, trial_side, "train")
    trial += judges / facts.pace(network, trial_side, "forward")
    seconds = {
        "preprocess": 1 + (facts.train + facts.test) / facts.decoded,
        "probe": START
        + (facts.train + validation) / forward
        + 3 * facts.fitted(min(facts.train, MOST_TO_CHOOSE)) + facts.fitted(min(facts.train, MOST)),
        "finetune": config.first_epochs * epoch(facts, config) + START * (config.first_epochs > 0),
        "optimize_finetuning": config.trials * trial * pruned,
        "race": race(facts, config) if config.trials else 0.0,
        "finetune_best": around(facts, config) + config.epochs * epoch(facts, config),
        "extract_features": facts.train / forward if config.darts_epochs else 0.0,
        "search_head": 0.0,
        "tune_head": 0.0,
        "train_head": 0.0,
        "train_members": 0.0,
        "compose": 2
        + config.members * (2 * views * validation / forward + facts.fitted(min(facts.train, MOST))),
        "evaluate": 4 + (config.members + 1) * views * facts.test / forward
        + 2e-7 * config.bootstrap * facts.classes**2,
        "suspects": suspecting(looked_at(facts.train, config.minutes)) if facts.test else 0.0,
        "pages": PAGES if facts.test else 0.0,  # a run of `ImageClassifier`, without test images, has neither
    }  # fmt: skip
    if config.darts_epochs:
        alone = 2 * config.alone_epochs  # each trained alone, and the halving
        seconds["search_head"] = config.head_seeds * seen * heads * (4 * config.darts_epochs + alone)
        seconds["tune_head"] = config.head_trials * config.head_epochs * seen * heads / 10
        seconds["train_head"] = START + config.head_epochs * train / config.batch_size * heads / 10
    if config.members > 1:
        seconds["train_members"] = (config.members - 1) * member(facts, config)
    return {name: SAFETY * value if name != "pages" else value for name, value in seconds.items()}


def epoch(facts: Facts, config: Config) -> float:
    """The seconds of an epoch of finetuning, its validation included."""
    train, validation = facts.train * (1 - config.validation_share), facts.train * config.validation_share
    train = min(train, config.epoch_images or train)
    paces = [facts.pace(config.backbone, config.image_size, what) for what in ("train", "forward")]
    return train / paces[0] + validation / paces[1]


def around(facts: Facts, config: Config) -> float:
    """The seconds that the final training takes besides its epochs: it begins, and the best model so far is kept."""
    validation = facts.train * config.validation_share
    return START + 2 * validation / facts.pace(config.backbone, config.image_size, "forward")


def race(facts: Facts, config: Config) -> float:
    """The seconds of the race between the finalists."""
    length = START + (config.race_epochs or config.epochs) * config.race_share * epoch(facts, config)
    return config.finalists * length


def member(facts: Facts, config: Config) -> float:
    """The seconds that a further network takes."""
    features = facts.train / facts.pace(config.backbone, config.image_size, "forward") if config.darts_epochs else 0.0
    return START + config.epochs * epoch(facts, config) + features


def looked_at(images: int, minutes: float) -> int:
    """How many of so many images are searched for wrong labels: `LOOKED_AT` at most, with few minutes fewer."""
    most = LOOKED_AT
    while minutes and most > 1000 and suspecting(most) > LOOKING * 60 * minutes:
        most //= 2
    return min(images, most)


def suspecting(images: int) -> float:
    """The seconds of the search for wrong labels among so many images, of which each is compared with each."""
    return 1 + 1e-4 * images + 1e-8 * images**2


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def steps(config: Config, seconds: dict[str, float] | None = None) -> pd.DataFrame:
    """The steps of a run of these settings: step, minutes (where the `seconds` of each are known), why."""
    some = f"{config.trial_share:.0%} of the images"
    how = f", each of {config.epoch_images} images" * bool(config.epoch_images)
    how += ", batch statistics fixed" * config.fix_statistics
    why = {
        "preprocess": f"images brought to {config.image_size} pixels ({config.fit}), and divided",
        "probe": "a first model: a linear layer on the network as it comes",
        "finetune": f"the study's first point, {_many(config.first_epochs, 'epoch')}" * (config.first_epochs > 0),
        "optimize_finetuning": f"{_many(config.trials, 'trial')} on {some}" * (config.trials > 0),
        "race": f"the best {config.finalists} trials against each other" * (config.trials > 0 and config.finalists > 1),
        "finetune_best": f"{_many(config.epochs, 'epoch')} of {config.backbone}{how}",
        "extract_features": "what the heads learn from" * (config.darts_epochs > 0),
        "search_head": f"DARTS and 37 heads alone, with {_many(config.head_seeds, 'seed')}" * (config.darts_epochs > 0),
        "tune_head": _many(config.head_trials, "trial") * (config.darts_epochs > 0 and config.head_trials > 0),
        "train_head": "the head itself" * (config.darts_epochs > 0),
        "train_members": _many(config.members - 1, "further network") * (config.members > 1),
        "compose": "of all these, what is best on validation",
        "evaluate": "the test images, once",
        "suspects": "train images whose labels are perhaps wrong",
        "pages": "notebooks and pages",
    }
    rows = [{"step": name, "minutes": (seconds or {}).get(name, np.nan) / 60, "why": why[name]} for name in ORDER]
    table = pd.DataFrame(rows)[[bool(row["why"]) for row in rows]].reset_index(drop=True)
    return table.round({"minutes": 2}) if seconds else table.drop(columns="minutes")
