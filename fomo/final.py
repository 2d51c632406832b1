"""Stage 10: what the final model is made of (which head, or both; one view, or two), and its calibration."""

from dataclasses import asdict, dataclass

import pandas as pd
import torch
from torch import nn

from fomo import metrics
from fomo.artifacts import Run
from fomo.classifier import FinalClassifier, Model, Network
from fomo.ensemble import Member, train_members
from fomo.head_search import search_head
from fomo.heads import LINEAR
from fomo.preprocessing import image_loader, preprocess
from fomo.stages import open_stage
from fomo.training import predict

HEADS = ("searched", "finetuned", "both")  # the searched and tuned one; the backbone's own linear layer; their mean
VIEWS = (1, 2)  # the image; also its mirror image


@dataclass(frozen=True)
class Final:
    """The final `model`, and the `options` that it was chosen from: heads, views, temperature, and on the validation
    images loss (calibrated), accuracy, macro F1, calibration error before and after, of several networks their means,
    each on its own validation images; `chosen` is the row taken."""

    model: Model
    options: pd.DataFrame
    chosen: pd.Series


def compose(run: Run) -> Final:
    """The final model: of the searched head and one view, or, if `final` is validation, of what is best there.

    What is best has the least validation loss once each option is calibrated: of all measures that one tells options
    apart with the fewest images. Of equals the first, which is the simplest.
    """
    stage, members, data = open_stage(run, "10_final"), train_members(run), preprocess(run)
    if not stage.done:
        tables = [judge_options(run, member).assign(network=number) for number, member in enumerate(members, start=1)]
        stage.save_table("options", pd.concat(tables))
        stage.finish()
    of_all = stage.table("options")
    options = of_all.drop(columns="network").groupby(["heads", "views"], sort=False, as_index=False).mean()
    chosen = options.loc[options["validation_loss"].idxmin() if run.config.final == "validation" else 0]
    taken = (of_all["heads"] == chosen["heads"]) & (of_all["views"] == chosen["views"])
    heads = {"searched": [search_head(run).head], "finetuned": [LINEAR]}
    heads["both"] = heads["searched"] + heads["finetuned"]
    description = {"backbone": run.config.backbone, "heads": [asdict(head) for head in heads[chosen["heads"]]]}
    description |= {"mirror": bool(chosen["views"] == 2), "temperatures": of_all.loc[taken, "temperature"].tolist()}
    description |= {"classes": data.dataset.classes, "image_size": run.config.image_size, "crop": run.config.crop}
    description |= {"channels": data.pixels.shape[1]}
    networks = [put_together(member, chosen["heads"], description["mirror"]) for member in members]
    return Final(Model(FinalClassifier(networks, description["temperatures"]).eval(), description), options, chosen)


def judge_options(run: Run, member: Member) -> pd.DataFrame:
    """What each option is worth on the validation images of a network: a row each."""
    pixels, rows, labels = member.data.part("validation")
    batches = image_loader(run, (pixels, rows, labels), member.network.backbone)
    mirrored = predict(Mirrored(member.network.backbone), batches, run.device)[0]
    views, table = [torch.tensor(member.features).to(run.device), mirrored.to(run.device)], []
    for number in VIEWS:
        for name in HEADS:
            network = put_together(member, name).eval()
            with torch.inference_mode():
                logits = network.judge(views[:number]).double().cpu().numpy()
            table.append({"heads": name, "views": number} | judge(labels, logits))
    return pd.DataFrame(table)


def put_together(member: Member, heads: str, mirror: bool = False) -> Network:
    """A network of the final model, with the heads that are called so."""
    of = {"searched": [member.head], "finetuned": [member.network.head], "both": [member.head, member.network.head]}
    return Network(member.network.backbone, of[heads], mirror)


class Mirrored(nn.Module):
    """A backbone that sees images in the mirror: (images, 3, side, side) -> (images, features)."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone(images.flip(-1))


def judge(labels, logits) -> dict:
    """What an option is worth on validation, calibrated there."""
    temperature = metrics.fit_temperature(labels, logits)
    scores = metrics.measure(labels, {"": logits.argmax(1)}, logits.shape[1], resamples=1, seed=0)
    values = scores.set_index("metric")["value"]
    return {
        "temperature": temperature,
        "validation_loss": metrics.log_loss(labels, logits / temperature),
        "validation_accuracy": values["accuracy"],
        "macro F1": values["macro F1"],
        "calibration_error_before": metrics.calibration_error(labels, logits),
        "calibration_error": metrics.calibration_error(labels, logits / temperature),
    }
