"""The command line: python -m fomo report --dataset NAME_OR_FOLDER ..., and so forth; python -m fomo --help lists it.

What a command needs is imported when it begins, so that help and refusals come at once.
"""

import argparse
import errno
import gc
import os
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import fomo
from fomo.config import CHOICES, DATASETS, PRESETS, WEIGHTS, UserError, make_config
from fomo.paths import absolute, figures_folder, named, runs_folder


class Parser(argparse.ArgumentParser):
    """A parser whose messages are as short as a `UserError`'s."""

    def error(self, message: str):
        super().error(str(UserError(message)))


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, or 2 after a message that says what to do; of `predict` 1 where some
    images could not be read."""
    parser = Parser(prog="python -m fomo", description="finetune, optimise, search")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("report", "all stages, the five notebooks, the figures"),
        ("results", "keeps what a finished run found in data/results; the table of all such runs beside the report's"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--dataset", default="fashion_sample", help=f"{', '.join(DATASETS)}, or a folder")
        command.add_argument(
            "--preset", help=f"{', '.join(PRESETS)}; as it comes, quick for the sample, auto for all else"
        )
        command.add_argument("--minutes", help="that the whole run may take, pages included (preset auto; 15)")
        command.add_argument("--metric", help=", ".join(CHOICES["metric"]))
        command.add_argument("--plan", help="the plan.json of another run, to make it again")
        command.add_argument("--seed", default="0", help="a whole number from 0")
        command.add_argument("--backbone", help="a network that timm knows; the preset names one")
        command.add_argument("--weights", help="imagenet, random, or a .safetensors or .pth file")
        command.add_argument("--image-size", help="in pixels; the plan or the preset has one")
        command.add_argument("--columns", help="of a table, as file:label; as it comes, found by looking")
        command.add_argument("--on-rare", help="classes of fewer than two train images: refuse (as it comes), drop")
        command.add_argument("--on-bad", help="images that cannot be read: raise (as it comes), skip")
        command.add_argument("--on-leak", help="train images that are in test too: warn (as it comes), drop")
    command = commands.add_parser("inspect", help="what is in a data set, and what is wrong with it")
    command.add_argument("dataset", help=f"{', '.join(DATASETS)}, or a folder, an archive, or a table")
    command.add_argument("--columns", default="", help="of a table, as file:label; as it comes, found by looking")
    command.add_argument("--on-rare", default="", help="classes of fewer than two train images: refuse, drop")
    command = commands.add_parser("predict", help="what a model says of images, as csv")
    command.add_argument("model", help="the model.safetensors of a run")
    command.add_argument("images", nargs="+", help="files, folders, patterns such as 'photos/*.png'")
    command.add_argument("--to", type=Path, metavar="FILE", help="in place of the standard output")
    command.add_argument(
        "--top", type=int, metavar="N", help="the N most probable classes in place of all probabilities"
    )
    command.add_argument("--threshold", type=float, metavar="SHARE", help="the class is 'unsure' below this confidence")
    command.add_argument("--explain", type=Path, metavar="FOLDER", help="for pictures of where the model looks")
    command = commands.add_parser("bench", help="what each of fomo's ways saves, as a table of ratios; minutes")
    command.add_argument("--dataset", default="fashion_sample", help=f"{', '.join(DATASETS)}, a folder or a table")
    command.add_argument(
        "--image-size", type=int, default=128, help="in pixels, of the loading and the feature extraction"
    )
    command = commands.add_parser("export", help="a model as one file for other programs, compared with fomo before")
    command.add_argument("model", help="the model.safetensors of a run")
    command.add_argument("--to", default="onnx", help="onnx (as it comes), torch (for torch.export)")
    command.add_argument("--images", help="a folder, to compare on; as it comes, test images of the model's run")
    commands.add_parser("networks", help="downloads networks that plans then try, too; once, 235 MB")
    commands.add_parser("evidence", help="what the searches are worth, with many seeds; hours")
    commands.add_parser("torture", help="whether runs that are disturbed at random moments end right; half an hour")
    given, begun = parser.parse_args(arguments), time.perf_counter()
    for stream in (sys.stdout, sys.stderr):  # a file's name may be no text at all
        stream.reconfigure(errors="backslashreplace")
    for name in ("FOMO_RUNS", "FOMO_FIGURES"):
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).absolute())  # notebooks run in another folder
    if given.command not in ("report", "bench"):
        os.environ["FOMO_FRESH"] = "0"  # the others go on with what is there, and delete nothing
    of_run = given.command not in ("predict", "export")  # these keep nothing before they are done
    try:
        if given.command == "inspect":
            inspection = fomo.inspect(given.dataset, given.columns, given.on_rare or "refuse")
            print(inspection.counts().to_string(), inspection.findings().to_string(index=False), sep="\n\n")
            print(f"\n{inspection.verdict()}")
        elif given.command == "predict":
            return _predict(given)
        elif given.command == "bench":
            from fomo.evidence import bench_table

            print(bench_table.gather(given.dataset, given.image_size))
        elif given.command == "export":
            print(fomo.export(given.model, given.to, given.images or None).to_string(index=False))
        elif given.command == "networks":
            from fomo.networks.weights import ONLINE, imagenet_weights

            for name in ONLINE:
                print(f"{name}: {imagenet_weights(name)}", flush=True)
        elif given.command == "evidence":
            print(_evidence())
        elif given.command == "torture":
            from fomo.evidence.torture import torture

            print(torture())
        elif given.command == "results":
            print(_results(given))
        else:
            print(_report(given, begun))
    except (UserError, ArithmeticError) as error:
        return _refuse(str(error))
    except BrokenPipeError:  # who reads has seen enough; Python would say so when it ends, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        kept = ["what is computed is kept"] * of_run
        return _refuse("; ".join([str(error), *_advice(error, of_run), *kept]))
    except KeyboardInterrupt:
        print(f"fomo: interrupted{'; the same command goes on from here' * of_run}", file=sys.stderr)
        return 130
    return 0


def _refuse(text: str) -> int:
    """Says what is wrong; returns the exit status."""
    print(f"fomo: {UserError(text)}", file=sys.stderr)
    return 2


def _advice(error: OSError, of_run: bool) -> list[str]:
    """What to do about an error of the system, as far as that is known, for a command `of_run`s or one without."""
    path = Path(os.fsdecode(error.filename)).absolute() if isinstance(error.filename, str | bytes) else None
    results = runs_folder("fashion_sample").parent, figures_folder()
    elsewhere = "results go to data/runs and figures, or to the folders that FOMO_RUNS and FOMO_FIGURES name"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ["free some space"] + [elsewhere] * of_run
    if error.errno == errno.ENOENT and path and path.is_relative_to(results[0]):
        stages = "delete the folder that lacked it and those of the stages after it"
        return [f"a stored result is incomplete: {stages}, or compute the run anew with FOMO_FRESH=1"]
    advice = _missing_right(path) if path and error.errno in (errno.EACCES, errno.EPERM) else []
    return advice + [elsewhere] * any(path and path.is_relative_to(folder) for folder in results)


def _missing_right(path: Path) -> list[str]:
    """What this process may not do that it has to where it is to read or write `path`."""
    folders = [folder for folder in reversed(path.parents) if os.path.exists(folder)]
    needed = [(folder, os.X_OK, "enter", "x") for folder in folders]
    needed += [(path, os.R_OK, "read", "r"), (path, os.W_OK, "write", "w")] if os.path.exists(path) else []
    for place, right, what, letter in [*needed, (folders[-1], os.W_OK, "write into", "w")]:
        if not os.access(place, right):
            return [f"you lack the right to {what} {place}, which its owner gives by chmod u+{letter}"]
    return []


@contextmanager
def _loading():
    """For imports: the garbage collector would go through all that torch brings again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _predict(given: argparse.Namespace) -> int:
    """Writes what a model predicts; returns the exit status."""
    with _loading():
        from fomo.predictions import explain, find_images, make_folder, write_predictions
        from fomo.storage import atomic
    model, options = fomo.load_model(given.model), {"top": given.top, "threshold": given.threshold}
    images = find_images(model, given.images)
    if given.explain:
        make_folder(given.explain, images)  # now, for predictions may take hours
    if given.to:
        with atomic(given.to) as path, path.open("w", encoding="utf-8", errors="surrogateescape") as file:
            read, unread = write_predictions(model, images, file, **options)
    else:
        read, unread = write_predictions(model, images, sys.stdout, **options)
    if given.explain and read:
        explain(model, images, given.explain)
    if unread:
        print(f"fomo: {unread} of {read + unread} images cannot be read; the last column says why", file=sys.stderr)
    return 0 if not unread else 1 if read else 2


def _evidence() -> str:
    """Gathers the evidence; returns it as text."""
    if find_spec("optuna") is None:
        raise UserError("the evidence compares with Optuna, which is not installed: make evidence installs it")
    from fomo.evidence.searches import gather

    return gather()


def _report(given: argparse.Namespace, begun: float) -> str:
    """Runs the pipeline with the parameters given; returns the closing line. The minutes count from `begun` on, what is
    imported included."""
    asked = _asked(given)
    with _loading():
        from fomo.report import report

    seconds = time.perf_counter() - begun
    run = fomo.Run(**asked)  # which may wait for another process
    run.clock.add(seconds)
    parameters = {"DATASET": asked.pop("dataset"), "PRESET": run.preset, "SEED": asked.pop("seed")}
    parameters |= {"MINUTES": asked.pop("minutes", None)}
    del asked["preset"]
    return report(run, parameters | {"SETTINGS": asked})


def _results(given: argparse.Namespace) -> str:
    """Keeps the results of the run with the parameters given; returns tables of all runs that are kept: beside the
    report's, over seeds, and with leaks."""
    results = fomo.results
    folder = results.collect(fomo.Run(**_asked(given)))
    tables = [results.measured(), results.spread(), results.leaked()]
    shown = "\n\n".join(table.to_string(index=False) for table in tables if len(table))
    return f"{shown}\n\nkept in {folder}"


def _asked(given: argparse.Namespace) -> dict:
    """What the parameters given ask of `fomo.Run`: data set, preset, seed, and the settings that are not empty."""
    if not given.seed.isdecimal():
        raise UserError(f"seed '{given.seed}' is not a whole number from 0")
    if given.image_size and not given.image_size.isdecimal():
        raise UserError(f"image size '{given.image_size}' is not a whole number of pixels")
    dataset = given.dataset if given.dataset.endswith(":") else named(given.dataset)  # notebooks run in another folder
    weights = absolute(given.weights, WEIGHTS) if given.weights else None
    try:
        minutes = float(given.minutes) if given.minutes else None
    except ValueError as error:
        raise UserError(f"minutes '{given.minutes}' are no number; give such as 20") from error
    settings = {"minutes": minutes, "metric": given.metric, "backbone": given.backbone, "weights": weights}
    settings |= {"image_size": int(given.image_size) if given.image_size else None}
    settings |= {name: getattr(given, name) for name in ("on_bad", "on_leak", "on_rare", "columns")}
    settings = {name: value for name, value in settings.items() if value not in (None, "")}
    preset = given.preset or None
    make_config(named(dataset), preset, seed=int(given.seed), **settings)  # a wrong name is refused at once
    plan = {"plan": str(Path(given.plan).expanduser().absolute())} if given.plan else {}
    return {"dataset": dataset, "preset": preset, "seed": int(given.seed)} | plan | settings


if __name__ == "__main__":
    sys.exit(main())
