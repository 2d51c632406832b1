"""The command line: python -m fomo report --dataset NAME_OR_FOLDER --preset PRESET --seed SEED --backbone NAME."""

import argparse
import sys
from pathlib import Path

from fomo.artifacts import Run
from fomo.config import DATASETS, PRESETS, UserError
from fomo.report import report


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, or 2 after a message that says what to do."""
    parser = argparse.ArgumentParser(prog="python -m fomo", description="finetune, optimise, search")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("report", help="all stages, the five notebooks, the figures")
    command.add_argument("--dataset", default="fashion_sample", help=f"{', '.join(DATASETS)}, or a folder")
    command.add_argument("--preset", default="quick", help=", ".join(PRESETS))
    command.add_argument("--seed", default="0", help="a whole number from 0")
    command.add_argument("--backbone", help="a network that timm knows; the preset names one")
    command.add_argument("--weights", help="imagenet, random, or a .safetensors or .pth file")
    given = parser.parse_args(arguments)
    try:
        if not given.seed.isdecimal():
            raise UserError(f"seed '{given.seed}' is not a whole number from 0")
        dataset = given.dataset if given.dataset in DATASETS else str(Path(given.dataset).expanduser().absolute())
        weights = given.weights or None
        if weights not in (None, "imagenet", "random"):
            weights = str(Path(weights).expanduser().absolute())
        parameters = {"DATASET": dataset, "PRESET": given.preset, "SEED": int(given.seed)}
        parameters |= {"BACKBONE": given.backbone or None, "WEIGHTS": weights}
        run = Run(
            given.dataset,
            given.preset,
            seed=int(given.seed),
            backbone=parameters["BACKBONE"],
            weights=parameters["WEIGHTS"],
        )
        print(report(run, parameters))
    except (UserError, ArithmeticError) as error:
        print(f"fomo: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        advice = (
            "results go to data/runs and figures: free some space, or name other folders by FOMO_RUNS, FOMO_FIGURES"
        )
        print(f"fomo: {error}; {advice}; what is computed is kept", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fomo: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
