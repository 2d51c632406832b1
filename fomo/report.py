"""`make report`: all stages with progress bars, the notebooks on what is stored, as executed copies and pages, and the
page of the run."""

import time
from pathlib import Path

from fomo.artifacts import Run
from fomo.config import ROOT, Config
from fomo.page import write_page
from fomo.pages import check_parameters, make_pages, shorten
from fomo.stages.ensemble import train_members
from fomo.stages.evaluation import MODEL, evaluate
from fomo.stages.features import extract_features
from fomo.stages.final import Final, compose
from fomo.stages.finetuning import finetune, optimize_finetuning
from fomo.stages.head_search import search_head, train_head, tune_head
from fomo.stages.inputs import dataset_of
from fomo.stages.metrics import told
from fomo.stages.planning import plan
from fomo.stages.preprocessing import preprocess
from fomo.stages.probing import probe
from fomo.stages.racing import finetune_best
from fomo.stages.so_far import evaluate_so_far, keep_best
from fomo.stages.suspecting import suspects

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0[1-5]_*.ipynb"))  # the sixth tells what to do with the model
SEARCHES = ("03_bayesian_optimization", "04_darts")  # whose notebooks tell of searches
STAGES = {
    "preprocess": preprocess,
    "probe": probe,
    "finetune": finetune,
    "optimize_finetuning": optimize_finetuning,
    "finetune_best": finetune_best,
    "extract_features": extract_features,
    "search_head": search_head,
    "tune_head": tune_head,
    "train_head": train_head,
    "train_members": train_members,
    "compose": compose,
    "evaluate": evaluate,
    "suspects": suspects,
}


def report(run: Run, parameters: dict) -> str:
    """Computes what is not yet stored, executes the notebooks with `parameters`; returns the closing line.

    The plan is printed before anything long begins. Where someone presses Ctrl-C, the best model so far is evaluated,
    and the closing line tells of it; the same call goes on from there. Another process that computes the run is waited
    for, once and not at each stage.
    """
    for notebook in NOTEBOOKS:
        check_parameters(notebook, parameters)
    with run.alone("12_evaluation"):
        start, dataset = time.perf_counter(), dataset_of(run)
        counts = f"{len(dataset.train)} train and {len(dataset.test())} test images of {len(dataset.classes)} classes"
        print(f"{dataset.place}: {counts}", flush=True)
        steps = plan(run).steps
        print(steps.to_string(index=False), flush=True)
        named = set(steps["step"]) | {"train_members"} if run.clock.limited else set(steps["step"])
        try:
            for name, stage in STAGES.items():
                if name in named:
                    _compute(run, name, stage)
        except KeyboardInterrupt:
            print("interrupted; what is the best so far is evaluated (again Ctrl-C: not even that)", flush=True)
            said = evaluate_so_far(run)
            return f"{said} | page: {shorten(write_page(run))} | the same command goes on from here"
    with run.clock.running():
        make_pages(pages(run), run.folder / "notebooks", parameters)
        page = write_page(run)
    return _closing(run, page, time.perf_counter() - start)


def _compute(run: Run, name: str, stage) -> None:
    """Computes a stage, and prints what it took and what is left; of the images, what there is to say about them."""
    begun = time.perf_counter()
    stage(run)
    if name == "preprocess":  # before anything is trained
        for note in preprocess(run).notes:
            print(f"note: {note}", flush=True)
    if name in ("probe", "finetune_best"):
        keep_best(run)
    text = f"[{name}]".ljust(24) + f"{time.perf_counter() - begun:7.1f} s"
    if run.clock.limited:
        text += f"   {run.clock.used / 60:5.1f} minutes used, {max(run.clock.left, 0) / 60:5.1f} left"
    print(text + (f"   best so far: {run.clock.best}" if run.clock.best else ""), flush=True)


def pages(run: Run) -> list:
    """The notebooks of what the run does: the searches' only where it searches."""
    searched = bool(run.config.trials), bool(run.config.darts_epochs)
    left_out = [name for name, done in zip(SEARCHES, searched, strict=True) if not done]
    return [notebook for notebook in NOTEBOOKS if notebook.stem not in left_out]


def _closing(run: Run, page: Path, seconds: float) -> str:
    """The closing line; before it, where finetuning did not beat the probe, a line that says so."""
    result = evaluate(run)
    lines = beside_probe(compose(run), run.config)
    lines.append(
        f"{run.config.dataset}: {told(result.metrics)} on {len(result.predictions)} {result.split} images "
        f"(95% intervals), in {seconds / 60:.1f} minutes | figures: {shorten(run.figures)} | model: "
        f"{shorten(run.folder / MODEL)} | page: {shorten(page)}"
    )
    return "\n".join(lines)


def beside_probe(final: Final, config: Config) -> list[str]:
    """A line where the probe is the final model, or better than it on validation by the metric that is wanted."""
    chosen, options = final.chosen, final.options
    if chosen["heads"] == "probe":
        found = "finetuning did not beat the probe on validation"
        return [f"{found}: the model is the network as it comes, its last layer fitted to all images"]
    probe = options[(options["heads"] == "probe") & (options["views"] == chosen["views"])].iloc[0]
    name = {"macro_f1": "macro F1", "accuracy": "validation_accuracy", "log_loss": "validation_loss"}[config.metric]
    sign = -1 if config.metric == "log_loss" else 1
    if sign * chosen[name] >= sign * probe[name]:
        return []
    line = f"on validation the probe (the network as it comes) is better than the final model: {probe[name]:.3f} to "
    line += f"{chosen[name]:.3f} ({config.metric})"
    losses = probe["validation_loss"], chosen["validation_loss"]
    if losses[0] > losses[1]:
        line += f"; few images decide that, for its loss is the larger one: {losses[0]:.3f} to {losses[1]:.3f}"
    elif config.flip != "none":
        line += f"; where mirrored images are other classes, train without them (flip='none'; it is '{config.flip}')"
    return [line]
