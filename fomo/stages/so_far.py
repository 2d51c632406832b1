"""The best model so far, in the run's one file, from the probe on; and what it is worth where a run ends early."""

import torch

from fomo.artifacts import Run
from fomo.config import UserError
from fomo.model import load_model
from fomo.networks.classifier import Classifier, Network
from fomo.networks.heads import LINEAR
from fomo.networks.inference import predict
from fomo.stages import metrics
from fomo.stages.evaluation import MODEL
from fomo.stages.final import judge, make_model
from fomo.stages.finetuning import untrained
from fomo.stages.preprocessing import image_loader, preprocess, test_images
from fomo.stages.probing import probe
from fomo.stages.racing import finetune_best
from fomo.storage import load_state, write_table
from fomo.training import calibration


def keep_best(run: Run) -> None:
    """Stores the better one of the probe and the finetuned network (its best epoch so far, where its training is not
    over) by the loss on validation, calibrated, as the run's model. A finished run has its final model already."""
    if run.finished("12_evaluation") or not run.finished("2_probe"):
        return
    data, found = preprocess(run), []
    for model in filter(None, (probe(run).model, _finetuned(run))):
        batches = image_loader(run, data.part("validation"), model.backbone)
        features, labels = predict(model.backbone, batches, run.device)
        with torch.inference_mode():
            logits = model.head(features.to(run.device)).cpu()
        found.append((judge(labels.numpy(), logits.double().numpy()), features, logits, labels, model))
    worth, features, logits, labels, model = min(found, key=lambda one: one[0]["validation_loss"])
    accuracy = float((logits.argmax(-1) == labels).double().mean())
    run.clock.best = f"accuracy {accuracy:.3f} on validation"
    network, unlike = Network(model.backbone, [model.head]), calibration.fit_unlike(features)
    handicaps = [0.0] * len(data.dataset.classes)
    model = make_model(run, data, [network], [LINEAR], [worth["temperature"]], [1.0], handicaps, unlike)
    model.save(run.folder / MODEL)


def _finetuned(run: Run) -> Classifier | None:
    """The finetuned network, or what its training has kept so far; None where there is neither."""
    if run.finished("5_best_finetuning"):
        return finetune_best(run).model
    checkpoint = run.folder / "5_best_finetuning" / "checkpoint.pt"
    if not checkpoint.exists():
        return None
    classifier = untrained(run, preprocess(run))
    classifier.load_state_dict(load_state(checkpoint, run.device)["best_state"])
    return classifier.eval()


def evaluate_so_far(run: Run) -> str:
    """What the best model so far reaches on the test images, as text; its metrics are stored in so_far.csv. Raises
    `UserError` where there is none yet."""
    keep_best(run)
    path = run.folder / MODEL
    if not path.exists():
        raise UserError("no model is there yet; the same command goes on from here")
    data, model = preprocess(run), load_model(path)
    test = data.dataset.test()
    seen = test_images(run, data.dataset, data.survey)
    rows = seen.rows[test["label"].to_numpy()[seen.rows] >= 0]
    split = "test" if len(rows) else "validation"
    part = (seen.pixels, rows, test["label"].to_numpy()[rows]) if len(rows) else data.part("validation")
    model.classifier.to(run.device)
    logits = predict(model.classifier, image_loader(run, part, model.classifier.networks[0].backbone), run.device)[0]
    named, options = {"final": model.classifier.decide(logits)[0]}, {"resamples": run.config.bootstrap}
    table = metrics.measure(part[2], named, len(model.classes), seed=run.config.seed, **options)
    write_table(run.folder / "so_far.csv", table.assign(split=split, images=len(part[1])))
    worth = f"{metrics.told(table)} on {len(part[1])} {split} images (95% intervals)"
    return f"the best model so far: {worth} | model: {path}"
