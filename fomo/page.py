"""The page of a run and its model card: what is stored, told to whom the model is handed. Nothing is computed anew."""

import base64
import re
import shlex
import time
from collections import defaultdict
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from scipy.stats import binomtest

from fomo.artifacts import Run
from fomo.config import some
from fomo.data.inspection import inspect, place
from fomo.pages import shorten
from fomo.results import PACKAGES, machine
from fomo.stages.evaluation import MODEL, Evaluation, evaluate
from fomo.stages.forecast import ORDER
from fomo.stages.metrics import gained, gap, interval
from fomo.stages.planning import plan
from fomo.stages.preprocessing import preprocess
from fomo.storage import read_json, read_table, write_bytes

PLACES = dict(zip(ORDER, [1, 2, 3, 4, "race", *range(5, 14), "pages"], strict=True))  # the numbers of steps' folders
PLAIN = ("train images", "test images", "classes", "sizes", "modes")  # findings that are no faults
NOTED = ("unreadable images", "test images byte-identical to a train image", "groups that straddle train and test")
NOTED += ("test images of such a group", "train images of such a group")  # of these the notes tell
WIDE = 0.03  # half of an interval from which on there are few test images
OFF = 0.05  # a difference of accuracies that deserves a word
WEAK = 0.1  # so far below the mean F1 is a class that the model cannot do
FEW = 20  # images of a class: with fewer, its own numbers say little


def write_page(run: Run) -> Path:
    """Stores index.html and MODEL_CARD.md in the run's folder; returns the path of the page. Of an interrupted run they
    tell what the best model so far is worth, as `evaluate_so_far` has stored it."""
    facts = _gather(run)
    for name, options in (("MODEL_CARD.md", {"finalize": _markdown}), ("index.html", {"autoescape": True})):
        text = _render(name, facts, **options)
        write_bytes(run.folder / name, text.encode(errors="backslashreplace"))  # a file's name may be no text at all
    return run.folder / "index.html"


def _render(name: str, facts: dict, **options) -> str:
    options |= {"loader": PackageLoader("fomo"), "undefined": StrictUndefined}
    environment = Environment(trim_blocks=True, lstrip_blocks=True, **options)
    environment.filters |= {"shown": _shown, "some": some}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}  # YAML knows no pairs of surrogates
    return environment.get_template(name).render(facts)


def _gather(run: Run) -> dict:
    """What the templates show."""
    data, result = preprocess(run), evaluate(run) if run.finished("12_evaluation") else None
    metrics = result.metrics if result else read_table(run.folder / "so_far.csv")
    split, images = (result.split, len(result.predictions)) if result else metrics.loc[0, ["split", "images"]]
    inspected, model = (place(data.dataset) / "survey.json").exists(), shorten(run.folder / MODEL)
    findings = inspect(data.dataset).findings() if inspected else pd.DataFrame({"finding": [], "count": []})
    final = metrics[metrics["model"] == "final"].set_index("metric").to_dict("index")
    facts = {"run": run, "config": run.config, "name": Path(run.config.dataset).name, "data": data, "result": result}
    facts |= {"split": split, "images": images, "metrics": metrics, "final": final, "findings": findings}
    accuracies = metrics[metrics["metric"] == "accuracy"].set_index("model").to_dict("index")
    accuracy = accuracies["final"]
    if accuracy["low"] == accuracy["high"]:  # of images that are all named right, resampling cannot tell more
        wilson = binomtest(round(accuracy["value"] * images), int(images)).proportion_ci(method="wilson")
        accuracy |= {"low": wilson.low, "high": wilson.high}
    facts |= {"accuracies": accuracies, "model": model}
    facts["path"] = shlex.quote(model.replace("$", "$$"))  # make itself reads $
    facts |= {"date": time.strftime("%d %B %Y", time.localtime((run.folder / MODEL).stat().st_mtime))}
    facts |= {"pages": [page.name for page in sorted((run.folder / "notebooks").glob("*.html"))]}
    return facts | {"know": _know(**facts), "tables": _tables(**facts), "pictures": _pictures(run)}


def _know(run, data, result: Evaluation | None, findings: pd.DataFrame, metrics, accuracies, final, split, images, **_):
    """What to know before the result is believed: whether it is as it should be, and a sentence; first what is not."""
    faults = findings[(findings["count"] > 0) & ~findings["finding"].isin(PLAIN)]
    others = faults[~faults["finding"].isin(NOTED)].itertuples(index=False)
    wrong = [*data.notes, *(f"{row[0]}: {row[1]}" for row in others)]
    # A sentence that begins with the name of a file has no capital.
    rows = [(False, f"{text[0].upper() if text.split()[0].isalpha() else text[0]}{text[1:]}.") for text in wrong]
    if len(findings) and faults.empty:
        rows.append((True, "All images can be read, and none is in train and in test."))
    half = (accuracies["final"]["high"] - accuracies["final"]["low"]) / 2
    rows.append((half <= WIDE, f"{images} {split} images: the accuracy is known to ± {100 * half:.1f} points."))
    if split == "validation":
        rows.insert(0, (False, "The test labels are hidden. Choices were made by the images that this is measured on."))
    if result is None:
        rows.insert(0, (False, "Interrupted: this is the best model so far. The same command goes on from there."))
        return sorted(rows, key=lambda row: row[0])
    doubtful = sum(kind == "label" for kind in _stored(run, "13_suspects", "suspects").get("kind", []))
    text = f"Labels that may be wrong: {doubtful}, many of them only hard. 13_suspects/suspects.csv ranks them."
    rows += [(False, text)] * bool(doubtful)
    if run.clock.decisions.get("suspects") == 0:
        rows.append((False, "No minutes were left to look for wrong labels."))
    few = list(result.per_class["class"][result.per_class["images"] < FEW])
    rows += [(False, f"Fewer than {FEW} of them show {some(few)}: what is said of these means little.")] * bool(few)
    low, gain, high = (f"{100 * accuracies['probe'][name]:+.1f}" for name in ("gain_low", "gain", "gain_high"))
    helps = accuracies["probe"]["gain_low"] > 0
    text = "Finetuning helps" if helps else "That finetuning helps is not shown"
    rows.append((helps, f"{text}: {gain} points [{low}, {high}] beside the probe."))
    weakest = result.per_class[result.per_class["images"] > 0].nsmallest(1, "F1").iloc[0]
    mean = final["macro F1"]["value"]
    text = f"The weakest class is {weakest['class']}, with an F1 of {weakest['F1']:.2f}; the mean is {mean:.2f}."
    rows.append((weakest["F1"] >= mean - WEAK, text))
    if split == "test":
        lost = gap(metrics, result.validation).loc["accuracy", "validation minus test"]
        text = f"{100 * abs(lost):.1f} points {'higher' if lost > 0 else 'lower'} on validation"
        rows.append((abs(lost) <= OFF, f"The accuracy is {text}, where choices were made."))
    error = result.calibration.set_index("probabilities").loc["calibrated", "calibration_error"]
    rows.append((error <= OFF, f"Its confidence is off by {100 * error:.1f} points in the mean (calibration error)."))
    return sorted(rows, key=lambda row: row[0])


def _tables(run: Run, data, result: Evaluation | None, findings: pd.DataFrame, metrics: pd.DataFrame, **_) -> dict:
    """The tables of the templates, by name; only what the run has."""
    asked = {"data set": data.dataset.place, "preset": run.preset, "seed": run.config.seed, "metric": run.config.metric}
    asked |= run.asked | {"minutes": run.config.minutes or "not limited"} | machine()
    asked["packages"] = ", ".join(f"{name} {asked.pop(name)}" for name in ("python", *PACKAGES))
    asked = pd.DataFrame([(name, str(value)) for name, value in asked.items()], columns=["what", "value"])
    counts = data.images["split"].value_counts().rename_axis("images for").reset_index(name="count")
    tables = {"asked": asked, "counts": counts, "findings": findings, "left out": data.left_out.head(FEW)}
    tables |= {"steps": _steps(run), "brought": _brought(metrics)}
    if len(trials := _stored(run, "4_bayesian_optimization", "trials")):
        complete = trials[trials["status"] == "complete"].loc[:, :"validation_accuracy"]
        tables["trials"] = complete.drop(columns="status").nsmallest(5, "objective")
    if len(ranking := _stored(run, "7_darts", "ranking")):
        tables["heads"] = ranking[["name", "activation", "alpha", "accuracy", "std"]].nlargest(5, "accuracy")
    if result:
        tables["classes"] = result.per_class.sort_values("F1")
        wrong = result.confusion.stack().reset_index().set_axis(["it is", "taken for", "images"], axis=1)
        wrong = wrong[(wrong["it is"] != wrong["taken for"]) & (wrong["images"] > 0)]
        tables["confusions"] = wrong.nlargest(10, "images")
    tables["suspects"] = _stored(run, "13_suspects", "suspects").drop(columns="row", errors="ignore").head(FEW)
    return {name: table for name, table in tables.items() if len(table)}


def _stored(run: Run, folder: str, name: str) -> pd.DataFrame:
    return read_table(run.folder / folder / f"{name}.csv") if run.finished(folder) else pd.DataFrame()


def _steps(run: Run) -> pd.DataFrame:
    """The steps of the plan, with the minutes that each has taken."""
    took = defaultdict(float)
    for path in run.folder.glob("[0-9]*/stage.json"):
        facts, number = read_json(path), int(path.parent.name.split("_")[0])
        race = facts.get("race_seconds", 0.0)
        took[number] += (facts.get("seconds", 0.0) - race) / 60
        took["race"] += race / 60
    steps = plan(run).steps.rename(columns={"minutes": "planned"})
    steps["minutes"] = [took.get(PLACES[step]) for step in steps["step"]]
    return steps.map(lambda cell: f"{cell:.2f}" if isinstance(cell, float) else cell, na_action="ignore")


def _brought(metrics: pd.DataFrame) -> pd.DataFrame:
    """A row a model: each metric with its interval, and by how much the final model is better."""
    rows = {}
    for row in metrics.to_dict("records"):
        cells = rows.setdefault(row["model"], {"model": row["model"]})
        cells[row["metric"]] = interval(row)
        if row["metric"] == "macro F1" and row["model"] != "final":
            cells["final is better by"] = gained(row)
    return pd.DataFrame(rows.values())


def _pictures(run: Run) -> dict[str, str]:
    """The figures that the notebooks drew after the evaluation, in base64; what is older another run has left. A blank
    one has nothing to show, such as mistakes where there are none."""
    record = run.folder / "12_evaluation" / "stage.json"
    drawn = run.figures.glob("*.png") if run.finished("12_evaluation") else []
    new = [path for path in drawn if path.stat().st_mtime >= record.stat().st_mtime]
    new = [path for path in new if len({*Image.open(path).convert("L").getextrema()}) > 1]
    return {path.stem: base64.b64encode(path.read_bytes()).decode() for path in new}


def _shown(value) -> str:
    """A cell of a table as text."""
    if not isinstance(value, float):
        return str(value)
    return "" if value != value else f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value:.3f}"


def _markdown(value) -> str:
    """A value as Markdown that shows it as it is, in one line; what a template calls safe stays."""
    if isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", " ".join(str(value).split()))
