"""The plan: what the minutes are spent on, a pure function of facts, a contest and the minutes."""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from fomo.config import Config, UserError
from fomo.networks.weights import OFFLINE
from fomo.stages.contest import CUT_OUTS, FEWEST, Contest, cost
from fomo.stages.facts import Facts
from fomo.stages.forecast import SAFETY, around, epoch, forecast, member, race, steps

# Rules.
ENOUGH_EPOCHS, ENOUGH_STEPS = 24, 600  # from both on further networks bring more than further epochs
SIDES, TRIED = (64, 96, 128, 160, 192, 224, 256), 4  # pixels; so many of them the contest tries
LEVEL = 2.0  # this and the gains by trainings of so many seconds at several sides (sides.csv), and steps (steps.csv)
GAIN, LARGER, LARGEST = 0.55, 0.2, 128  # at 64 pixels; so much more with twice as many, up to so many
FEW_EPOCHS = 5  # with fewer, an epoch is a part of the images
OFTEN = 6  # epochs: from here on images are turned upside down, where the contest takes that
VERY_OFTEN = 12  # epochs: the same of cut-outs, which with 6 epochs cost 3 points on fashion, 100 of each class
SETTLED, FEW_IMAGES = 200, 1000  # steps, train images: with fewer, the statistics of batches do harm
FASTER = 2e-3  # the learning rate where batches have their own statistics; 1e-3 reaches less (steps.csv)
FEW_JUDGES, JUDGES = 100, 400  # validation images, of few images and of many
MEMORY = 0.5  # of what is free: what a batch may keep
SMALLEST_BATCH = 4  # images: with fewer, batch statistics say nothing
JUDGING = 0.1  # of the seconds: what the passes over the test images may take
SEARCH = 0.25  # of the final training: all searches together take no more
LEAST_SEARCH = 25.0  # seconds; with fewer there is no search
SHARES = {"study": 0.5, "race": 0.25, "head": 0.25}  # of the seconds of all searches
MOST_MEMBERS = 8  # networks: the mean of more is hardly better, and each prediction takes as long as there are networks
HEAD = ("search_head", "tune_head", "train_head")


@dataclass(frozen=True)
class Plan:
    """The `settings` of a run, and its `steps`: step, minutes, why."""

    settings: dict
    steps: pd.DataFrame


def sides(facts: Facts, config: Config, seconds: float, contest: float) -> list[int]:
    """The sides, in pixels, that the contest tries, smallest first: no larger than lets the probe pass over all images
    in half the `seconds`, and the `contest` over `FEWEST` images in its own; and at most `TRIED` of these. Small images
    are enlarged, too: a network that was made at 224 pixels sees more in clothes of 28 pixels then."""
    if len(set(facts.speeds["side"])) == 1:  # the network sees images of one size
        return [int(facts.speeds["side"].iloc[0])]
    images, pace = facts.train + facts.test, facts.pace
    affordable = [side for side in SIDES if images / pace(config.backbone, side, "forward") < seconds / 2]
    while True:
        places = np.linspace(0, len(affordable) - 1, min(TRIED, len(affordable))).round().astype(int)
        tried = [affordable[place] for place in places] or [SIDES[0]]
        if len(tried) == 1 or cost(facts, [config.backbone], tried, 1, FEWEST) <= contest:
            return tried
        affordable.pop()


def networks(facts: Facts, sides: list[int], contest: float) -> list[str]:
    """The networks that a `contest` of so many seconds can compare on twice `FEWEST` images: all that were timed, or
    without the last ones, which take longest."""
    names = list(dict.fromkeys(facts.speeds["backbone"]))
    while len(names) > 1 and cost(facts, names, sides, 1, 2 * FEWEST) > contest:
        names.pop()
    return names


def validation_share(facts: Facts) -> float:
    """A tenth of the images; of many less, `JUDGES` images and a twentieth at least, of few more, `FEW_JUDGES` and a
    fifth at most. More judges choose hardly better, and the training misses them: a fifth in place of a tenth costs
    0.03 to 0.04 of log loss with 1500 to 2000 images, and a point or two with ten of each class. Those that are given
    for it stay."""
    share = max(min(0.1, JUDGES / facts.train), FEW_JUDGES / facts.train)
    return facts.validated or float(np.clip(round(share, 2), 0.05, 0.2))


def make_plan(facts: Facts, contest: Contest, config: Config, seconds: float, asked: dict | None = None) -> Plan:
    """The plan for the `seconds` that are left, from the settings that all plans share (`config`); settings that were
    `asked` for stay.

    The final training is reserved first, all searches get at most a quarter of it, and further networks what is then
    left. A step that finds no room is left out. Raises `UserError`, with the minutes needed, where the probe does not
    fit.
    """
    asked = asked or {}
    base = {"fit": contest.fit, "flip": contest.flip}
    base |= {"validation_share": validation_share(facts)}
    base |= {"trials": 0, "darts_epochs": 0, "head_trials": 0, "members": 1, "epochs": 1}
    bare = replace(config, **base | asked)
    found = []
    for row in _with_between(contest.table[contest.table["fit"] == contest.fit]).itertuples():
        one = replace(bare, backbone=row.backbone, image_size=row.side)
        one = replace(one, **{"batch_size": _batch_size(facts, one)} | asked)
        one = replace(one, **{"views": _views(facts, one, seconds)} | asked)
        if _fixed(facts, one) > seconds:
            one = replace(one, **{"views": 1} | asked)
        epochs = _epochs(facts, one, seconds)
        one = replace(one, **_training(facts, one, epochs) | asked)
        if epochs < OFTEN:
            one = replace(one, **{"flip": "none" if one.flip == "none" else "horizontal"} | asked)
        if contest.cuts and epochs >= VERY_OFTEN:
            one = replace(one, **CUT_OUTS | asked)
        found.append((_promise(facts, one, row, _epochs(facts, one, seconds)), one, _fixed(facts, one)))
    fitting = [option for option in found if option[-1] <= seconds]
    if not fitting:
        missing = min(fixed for *_, fixed in found) - seconds
        least = math.ceil(10 * (config.minutes + missing / 60)) / 10
        raise UserError(
            f"even the probe does not fit into {config.minutes:g} minutes here; give at least {least:g} (MINUTES)"
        )
    _, one, fixed = max(fitting, key=lambda option: option[0])
    settings = replace(one, **_spend(facts, one, seconds - fixed) | asked)
    return Plan(_changed(settings, config), steps(settings, forecast(facts, settings)))


def _fixed(facts: Facts, config: Config) -> float:
    """The seconds of all steps but the training."""
    return sum(value for name, value in forecast(facts, config).items() if name != "finetune_best")


def _epochs(facts: Facts, config: Config, seconds: float) -> float:
    """The epochs of training that fit into so many seconds beside all else."""
    return max(0.0, seconds - _fixed(facts, config) - SAFETY * around(facts, config)) / SAFETY / epoch(facts, config)


def _training(facts: Facts, config: Config, epochs: float) -> dict:
    """Whether batch normalisation keeps the statistics of the network as it comes: where few images are seen often, and
    in trainings too short for new ones to settle. Where it does not, the learning rate is larger; that was learned, and
    tried, with the networks that come without the internet (steps.csv). Random weights come without statistics."""
    kept = config.weights != "random" and facts.by_batch(config.backbone)
    often = epochs >= OFTEN and facts.train <= FEW_IMAGES
    if config.fix_statistics or (kept and (often or epochs * facts.train < SETTLED * config.batch_size)):
        return {"fix_statistics": True}
    return {"plain_lr": FASTER} if config.weights == "imagenet" and config.backbone in OFFLINE else {}


def enough_epochs(facts: Facts, config: Config) -> int:
    """The most epochs of a training: more of few images."""
    return max(ENOUGH_EPOCHS, math.ceil(ENOUGH_STEPS * config.batch_size / facts.train))


def _views(facts: Facts, config: Config, seconds: float) -> int:
    """The most views of an image whose passes over the test images take no more than `JUDGING` of the seconds."""
    each = facts.test / facts.pace(config.backbone, config.image_size, "forward")
    return next((views for views in (8, 4, 2) if views * each <= JUDGING * seconds), 1)


def _with_between(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a contest, and those of each network for the sides between the ones that were tried, with the loss
    that a straight line between their neighbours has there."""
    tables = [table]
    for backbone, tried in table.groupby("backbone", sort=False):
        sides, losses = tried.sort_values("side")[["side", "log_loss"]].to_numpy().T
        between = [side for side in SIDES if sides[0] < side < sides[-1] and side not in sides]
        loss = np.interp(np.log(between), np.log(sides), losses)
        tables.append(pd.DataFrame({"backbone": backbone, "side": between, "log_loss": loss}))
    return pd.concat([one for one in tables if len(one)], ignore_index=True)


def _promise(facts: Facts, config: Config, row, epochs: float) -> float:
    """What so many epochs are expected to reach: the log-odds of the right class, up to a constant.

    Of the contest the loss counts, which tells sides apart with fewer images than the accuracy. A finetuning passes the
    probe after `LEVEL` times as many steps as the square root of the number of images it has seen, then gains quickly,
    and comes up to `GAIN` more in the end, where images are larger, still more; shorter ones spoil what the network
    knows, and the probe is taken.
    """
    steps = max(1.0, min(epochs, enough_epochs(facts, config)) * facts.train / config.batch_size)
    loss = max(row.log_loss, 1e-3)
    odds = -loss - np.log(-np.expm1(-loss))  # of the geometric mean of the right class's probability
    level = LEVEL * np.sqrt(min(facts.train, steps * config.batch_size))
    gain = GAIN + LARGER * np.log2(min(config.image_size, LARGEST) / SIDES[0])
    return float(odds + gain * max(0.0, 1 - level / steps))


def _spend(facts: Facts, config: Config, seconds: float) -> dict:
    """The settings of training and searches for so many seconds."""
    each = SAFETY * epoch(facts, config)
    search = min(SEARCH * seconds / (1 + SEARCH), SEARCH * enough_epochs(facts, config) * each)
    settings = _search(facts, config, search if search >= LEAST_SEARCH else 0.0)
    spent = sum(forecast(facts, replace(config, **settings)).values()) - sum(forecast(facts, config).values())
    if seconds - spent - SAFETY * around(facts, config) < each:  # the training comes first
        settings, spent = _search(facts, config, 0.0), 0.0
    rest = seconds - spent - SAFETY * around(facts, config)
    if rest < FEW_EPOCHS * each:  # they are shorter ones, so that all the time is used
        epochs = max(1, math.ceil(rest / each))
        validated = facts.train * config.validation_share / facts.pace(config.backbone, config.image_size, "forward")
        images = int((rest / epochs / SAFETY - validated) * facts.pace(config.backbone, config.image_size, "train"))
        return settings | {"epochs": epochs, "epoch_images": max(images, 2 * config.batch_size)}
    epochs = int(np.clip(rest / each, 1, enough_epochs(facts, config)))
    settings |= {"epochs": epochs}
    planned = replace(config, **settings)
    more = rest - epochs * each
    judged = forecast(facts, replace(planned, members=2))["evaluate"] - forecast(facts, planned)["evaluate"]
    members = 1 + int(max(0.0, more) / (SAFETY * member(facts, planned) + judged))
    return settings | {"members": int(min(members, MOST_MEMBERS))}


def _search(facts: Facts, config: Config, seconds: float) -> dict:
    """The settings of the searches for so many seconds: the study, its race, and the search for a head."""
    settings = {"trials": 0, "darts_epochs": 0, "head_trials": 0}
    if not seconds:
        return settings
    train = facts.train * (1 - config.validation_share)
    one_size = (facts.speeds["backbone"] == config.backbone).sum() == 1
    small = 0 if config.trial_size or one_size else max(48, config.image_size // 2)
    for trials, share in ((30, 1.0), (30, 0.5), (20, 0.5), (20, 0.25), (12, 0.25), (12, 0.1), (8, 0.1), (8, 0.05)):
        study = {"trials": trials, "initial_trials": min(10, trials // 2), "trial_share": share, "trial_size": small}
        if share * train < 10 * config.batch_size and share < 1:
            continue
        if forecast(facts, replace(config, **study))["optimize_finetuning"] <= SHARES["study"] * seconds:
            settings |= study
            break
    if settings["trials"]:
        for epochs, share in ((4, 1.0), (2, 1.0), (2, 0.5), (1, 0.5), (1, 0.25)):
            settings |= {"race_epochs": epochs, "race_share": share}
            if race(facts, replace(config, **settings)) <= SHARES["race"] * seconds:
                break
        else:  # what a study finds has to win a race
            settings["trials"] = 0
    heads, left = ((3, 30, 4000), (3, 10, 2000), (2, 10, 1000), (1, 10, 1000), (1, 0, 1000)), SHARES["head"] * seconds
    if not settings["trials"]:  # a small search takes the place of the study
        heads, left = heads[-2:], seconds
    for seeds, trials, images in heads:
        head = {"darts_epochs": 8, "head_seeds": seeds, "head_trials": trials, "head_images": images}
        planned = forecast(facts, replace(config, **head))
        if sum(planned[name] for name in ("extract_features", *HEAD)) <= left:
            settings |= head
            break
    return settings


def _batch_size(facts: Facts, config: Config) -> int:
    """Batches of 32 images, of 64 where there are many, and smaller ones where memory would not do."""
    size, each = 64 if facts.train > 20_000 else 32, facts.kept(config.backbone, config.image_size)
    while size > SMALLEST_BATCH and size * each > MEMORY * facts.free:
        size //= 2
    return size


def _changed(settings: Config, config: Config) -> dict:
    """The settings that a plan has made."""
    before = asdict(config)
    return {name: value for name, value in asdict(settings).items() if value != before[name]}
