"""Stage 9: what the final model is made of (which head, or both; one view, or two), and its calibration."""

from dataclasses import asdict, dataclass

import pandas as pd
import torch
from torch import nn

from fomo import metrics
from fomo.artifacts import Run
from fomo.classifier import FinalClassifier, Model
from fomo.finetuning import finetune_best
from fomo.head_search import extract_features, search_head, train_head
from fomo.heads import LINEAR
from fomo.preprocessing import image_loader, preprocess
from fomo.stages import open_stage
from fomo.training import predict

HEADS = ("searched", "finetuned", "both")  # the searched and tuned one; the backbone's own linear layer; their mean
VIEWS = (1, 2)  # the image; also its mirror image


@dataclass(frozen=True)
class Final:
    """The final `model`, and the `options` that it was chosen from: heads, views, temperature, and on the validation
    images loss (calibrated), accuracy, macro F1, calibration error before and after; `chosen` is the row taken."""

    model: Model
    options: pd.DataFrame
    chosen: pd.Series


def compose(run: Run) -> Final:
    """The final model: of the searched head and one view, or, if `final` is validation, of what is best there.

    What is best has the least validation loss once each option is calibrated: of all measures that one tells options
    apart with the fewest images. Of equals the first, which is the simplest.
    """
    stage, data, network = open_stage(run, "9_final"), preprocess(run), finetune_best(run).model
    heads = {"searched": [train_head(run).model], "finetuned": [network.head]}
    heads["both"] = heads["searched"] + heads["finetuned"]
    if not stage.done:
        features, device = extract_features(run), run.device
        batches = image_loader(run, data.part("validation"), network.backbone)
        views = [torch.tensor(features.validation).to(device)]
        views.append(predict(Mirrored(network.backbone), batches, device)[0].to(device))
        labels, rows = features.validation_labels, []
        for number in VIEWS:
            for name in HEADS:
                model = FinalClassifier(network.backbone, heads[name]).eval()
                with torch.inference_mode():
                    logits = model.judge(views[:number]).double().cpu().numpy()
                rows.append({"heads": name, "views": number} | judge(labels, logits))
        stage.save_table("options", pd.DataFrame(rows))
        stage.finish()
    options = stage.table("options")
    chosen = options.loc[options["validation_loss"].idxmin() if run.config.final == "validation" else 0]
    of = {"searched": [search_head(run).head], "finetuned": [LINEAR]}
    of["both"] = of["searched"] + of["finetuned"]
    description = {"backbone": run.config.backbone, "heads": [asdict(head) for head in of[chosen["heads"]]]}
    description |= {"mirror": bool(chosen["views"] == 2), "temperature": float(chosen["temperature"])}
    description |= {"classes": data.dataset.classes, "image_size": run.config.image_size, "crop": run.config.crop}
    parts = heads[chosen["heads"]], description["mirror"], description["temperature"]
    classifier = FinalClassifier(network.backbone, *parts).eval()
    return Final(Model(classifier, description | {"channels": data.pixels.shape[1]}), options, chosen)


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
