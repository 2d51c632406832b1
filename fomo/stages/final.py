"""Stage 11: what the final model is made of (heads, views of an image), its calibration, and when it names a class."""

from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import nn

from fomo.artifacts import Run
from fomo.config import Config
from fomo.model import Model
from fomo.networks.classifier import FinalClassifier, Network, view
from fomo.networks.heads import LINEAR, Head
from fomo.networks.inference import predict
from fomo.networks.unlike import Unlike
from fomo.stages import metrics
from fomo.stages.choosing import choose, choose_adjustment, limit
from fomo.stages.common import open_stage, step
from fomo.stages.ensemble import Member, train_members
from fomo.stages.head_search import search_head
from fomo.stages.preprocessing import Preprocessed, image_loader, preprocess
from fomo.stages.probing import probe
from fomo.storage import load_state, new_array, read_json, save_state, write_json
from fomo.training import calibration

HEADS = ("probe", "finetuned", "with probe", "searched", "both")  # the network as it comes with a linear layer; the
# finetuned one with its own linear layer; the mean of these two; the finetuned one with the searched and tuned head;
# the mean of its heads
PROBE_SHARE = 0.25  # of the mean; 0.2 to 0.4 are worth the same (data/results/README.md)
TURNED = 90.0  # from this `rotation` in training on, in degrees, turned views are tried
ADJUSTMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the logarithm of a class's share of the train images: its handicap


@dataclass(frozen=True)
class Final:
    """The final `model` with the names of its `networks` (finetuned or probe, network 2 and so on; the probe of several
    is the last), and the `options` that it was chosen from: heads, views, temperature, and on the validation
    images loss (calibrated), accuracy, macro F1, calibration error before and after, of several networks their means,
    each on its own validation images; `chosen` is the row taken. `decisions`: what naming rare classes more often makes
    of that option: adjustment (the first row: none), accuracy, macro F1; `adjustment` is the one taken."""

    model: Model
    networks: list[str]
    options: pd.DataFrame
    chosen: pd.Series
    decisions: pd.DataFrame
    adjustment: float


@step("11_final")
def compose(run: Run) -> Final:
    """The final model: of the searched head and one view, or, if `final` is validation, of what is best there.

    The views are those of least loss. Which heads are best is told by the validation images (`choose`). Then, if macro
    F1 is wanted, that adjustment is taken which gains more of it than it costs accuracy.
    """
    stage, members, data = open_stage(run, "11_final"), train_members(run), preprocess(run)
    if not stage.done:
        judged = [judge_options(run, member, first=not number) for number, member in enumerate(members)]
        tables = [table.assign(network=number) for number, (table, _, _) in enumerate(judged, start=1)]
        stage.save_table("options", pd.concat(tables))
        write_json(stage.path("chosen.json"), taken := choose([worth for _, worth, _ in judged], run.config))
        if taken["heads"] in ("probe", "with probe"):
            save_state(stage.path("probe.pt"), probe(run).head_for(data, "train", "validation").state_dict())
        features = judged[0][2]["probe" if taken["heads"] == "probe" else "finetuned"]
        save_state(stage.path("unlike.pt"), calibration.fit_unlike(features).state_dict())
        told = np.concatenate([worth[*taken.values()][3] for _, worth, _ in judged if tuple(taken.values()) in worth])
        with new_array(stage.path("told.npy"), told.shape, np.float64) as store:
            store[:] = told
        stage.finish()
    of_all, keys = stage.table("options"), ["heads", "views", "adjustment"]
    means = of_all.drop(columns="network").groupby(keys, sort=False, as_index=False).mean()
    options = means[means["adjustment"] == 0].drop(columns="adjustment").reset_index(drop=True)
    taken = read_json(stage.path("chosen.json"))
    chosen = options[(options["heads"] == taken["heads"]) & (options["views"] == taken["views"])].iloc[0]
    decisions = _taken(means, chosen)[["adjustment", "validation_accuracy", "macro F1"]].reset_index(drop=True)
    wanted = run.config.final == "validation" and run.config.metric == "macro_f1"
    adjustment = choose_adjustment(decisions) if wanted else 0.0
    temperatures = limit(_taken(of_all[of_all["adjustment"] == 0], chosen)["temperature"].tolist())
    views = next(one for one in all_views(run.config) if len(one) == chosen["views"])
    count = len(temperatures)
    own = "finetuned" if chosen["heads"] == "with probe" else chosen["heads"]
    networks, weights = put_together(run, members[0], own, views), [1 / count] * count
    for number, member in enumerate(members[1:count], start=2):
        networks[f"network {number}"] = put_together(run, member, own, views)["finetuned"]
    if chosen["heads"] == "with probe":
        networks |= put_together(run, members[0], "probe", views)
        temperatures.append(float(np.mean(temperatures)))
        weights = [(1 - PROBE_SHARE) / count] * count + [PROBE_SHARE]
    if "probe" in networks:
        networks["probe"].heads[0].load_state_dict(load_state(stage.path("probe.pt"), run.device))
    handicaps = (adjustment * log_shares(data)).tolist()
    unlike = Unlike(**load_state(stage.path("unlike.pt"), run.device))
    heads = {"searched": [search_head(run).head] if run.config.darts_epochs else []}
    heads |= {"both": [*heads["searched"], LINEAR]}
    of = heads.get(chosen["heads"], [LINEAR])
    model = make_model(run, data, [*networks.values()], of, temperatures, weights, handicaps, unlike)
    return Final(model, list(networks), options, chosen, decisions, adjustment)


def make_model(
    run: Run,
    data: Preprocessed,
    networks: list[Network],
    heads: list[Head],
    temperatures: list[float],
    weights: list[float],
    handicaps: list[float],
    unlike: Unlike,
) -> Model:
    """The model of these networks, with all that it takes to use it; `heads` describes those of each network."""
    description = {"backbone": run.config.backbone, "heads": [asdict(head) for head in heads]}
    description |= {"views": list(networks[0].views), "temperatures": temperatures, "weights": weights}
    description |= {"handicaps": handicaps}
    description |= {"classes": data.dataset.classes, "channels": data.survey.channels, "ranges": data.survey.ranges}
    description |= {"image_size": run.config.image_size, "fit": run.config.fit, "crop": run.config.crop}
    return Model(FinalClassifier(networks, temperatures, weights, handicaps, unlike).eval(), description)


def _taken(table: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    return table[(table["heads"] == chosen["heads"]) & (table["views"] == chosen["views"])]


def log_shares(data: Preprocessed) -> np.ndarray:
    """The logarithm of each class's share of the train images (classes)."""
    labels = data.part("train")[2]
    return np.log(np.bincount(labels, minlength=len(data.dataset.classes)) / len(labels))


def all_views(config: Config) -> list[tuple[int, ...]]:
    """The sets of views that a run tries: those of `view_sets` that have not more than `views`."""
    return [views for views in view_sets(config.flip, config.rotation) if len(views) <= config.views]


def view_sets(flip: str, rotation: float) -> list[tuple[int, ...]]:
    """The sets of views (numbers for `classifier.view`) that are tried, the fewest first and each part of the next:
    the image, then what a network has seen in training that was flipped and turned like this."""
    if flip == "none":
        return [(0,), (0, 2, 4, 6)] if rotation >= TURNED else [(0,)]
    sets = [(0,), (0, 1)]
    if rotation >= TURNED:
        return [*sets, tuple(range(8))]
    return [*sets, (0, 1, 4, 5)] if flip == "both" else sets


def judge_options(run: Run, member: Member, *, first: bool) -> tuple[pd.DataFrame, dict, dict]:
    """What each option is worth on the validation images of a network, with each adjustment, a row each; for each
    option (heads, views) their labels, the classes named, the losses, and what it tells (the row of the pixels, then
    all probabilities); and the features of each backbone. The probe alone is an option of the `first` network."""
    pixels, rows, labels = member.data.part("validation")
    sets = all_views(run.config)
    names = [name for name in HEADS if (first or name != "probe") and (member.head or name not in HEADS[3:])]
    table, worth, seen, shares = [], {}, {}, log_shares(member.data)
    for name in names:
        networks = put_together(run, member, name, first=first)
        weights = (1.0,) if len(networks) == 1 else (1 - PROBE_SHARE, PROBE_SHARE)
        for (source, network), number in product(networks.items(), sets[-1]):
            if (source, number) not in seen:
                batches = image_loader(run, (pixels, rows, labels), network.backbone)
                features = predict(Seen(network.backbone, number).eval(), batches, run.device)[0]
                seen[source, number] = features.to(run.device)
        for views in sets:
            with torch.inference_mode():
                of_each = [one.eval().judge([seen[key, number] for number in views]) for key, one in networks.items()]
            logits = [one.double().cpu().numpy() for one in of_each]
            option, values = {"heads": name, "views": len(views)}, judge(labels, *logits, weights=weights)
            scaled = calibration.pooled(logits, weights, values["temperature"])
            told = np.column_stack([rows, softmax(scaled, axis=1)])
            worth[name, len(views)] = labels, scaled.argmax(1), calibration.losses(labels, scaled), told
            for adjustment in ADJUSTMENTS:
                named = (scaled - adjustment * shares).argmax(1)
                table.append(option | {"adjustment": adjustment} | values | score(labels, named, len(shares)))
    return pd.DataFrame(table), worth, {source: one for (source, number), one in seen.items() if number == 0}


def put_together(
    run: Run, member: Member, heads: str, views: tuple[int, ...] = (0,), *, first: bool = True
) -> dict[str, Network]:
    """What judges an image where the heads are called so: a network that was `finetuned`, the `probe`, or both. None
    has learned from the validation images of the member, the `first` one or not."""
    parts = {}
    if heads != "probe":
        own = {"searched": [member.head], "both": [member.head, member.network.head]}
        parts["finetuned"] = Network(member.network.backbone, own.get(heads, [member.network.head]), views)
    if heads in ("probe", "with probe"):
        tested = probe(run)
        head = tested.head if first else tested.head_for(member.data, "train").to(run.device)
        parts["probe"] = Network(tested.backbone, [head], views)
    return parts


class Seen(nn.Module):
    """A backbone that sees a view of each image (`classifier.view`): (images, 3, side, side) -> (images, features)."""

    def __init__(self, backbone: nn.Module, number: int):
        super().__init__()
        self.backbone = backbone
        self.number = number

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone(view(images, self.number))


def judge(labels: np.ndarray, *logits: np.ndarray, weights: tuple[float, ...] = (1.0,)) -> dict:
    """What the probabilities of an option, the weighted mean of those of its networks, are worth on validation,
    calibrated there."""
    temperature = calibration.fit_temperature(labels, *logits, weights=weights)
    calibrated = calibration.pooled(logits, weights, temperature)
    return {
        "temperature": temperature,
        "validation_loss": calibration.log_loss(labels, calibrated),
        "calibration_error_before": metrics.calibration_error(labels, calibration.pooled(logits, weights, 1.0)),
        "calibration_error": metrics.calibration_error(labels, calibrated),
    }


def score(labels: np.ndarray, named: np.ndarray, classes: int) -> dict:
    """What the classes named are worth."""
    confusion = metrics.confusion(labels, named, list(range(classes)))
    values = dict(zip(metrics.METRICS, metrics.scores(confusion.to_numpy()), strict=True))
    return {"validation_accuracy": float(values["accuracy"]), "macro F1": float(values["macro F1"])}
