"""What the report says at its end."""

from types import SimpleNamespace

import pandas as pd
import pytest

from fomo.config import make_config
from fomo.report import beside_probe

OPTIONS = pd.DataFrame(
    [
        ("probe", 1, 0.93, 0.94, 0.20),
        ("probe", 2, 0.80, 0.80, 0.60),
        ("finetuned", 1, 0.60, 0.62, 0.90),
        ("searched", 1, 0.70, 0.95, 0.80),
        ("searched", 2, 0.85, 0.85, 0.50),
        ("finetuned", 2, 0.70, 0.82, 0.40),
    ],
    columns=["heads", "views", "macro F1", "validation_accuracy", "validation_loss"],
)


def said(row: int, preset: str, **settings) -> list[str]:
    final = SimpleNamespace(options=OPTIONS, chosen=OPTIONS.iloc[row])
    return beside_probe(final, make_config("fashion_sample", preset, **settings))


@pytest.mark.parametrize("preset", ["report", "quick", "auto"])
def test_probe_that_is_better_than_the_final_model_is_told_with_every_preset(preset):
    (line,) = said(3, preset)
    assert "the probe (the network as it comes) is better than the final model: 0.930 to 0.700 (macro_f1)" in line
    assert "flip='none'" in line
    assert "flip" not in said(3, preset, flip="none")[0]


def test_probe_is_judged_by_the_metric_that_is_wanted_and_on_the_same_views():
    assert said(3, "report", metric="accuracy") == []
    assert "0.200 to 0.800 (log_loss)" in said(3, "report", metric="log_loss")[0]
    assert said(4, "report") == said(4, "report", metric="log_loss") == []


def test_probe_of_larger_loss_is_not_laid_to_mirrored_images():
    (line,) = said(5, "auto")
    assert line.endswith(
        "0.800 to 0.700 (macro_f1); few images decide that, for its loss is the larger one: 0.600 to 0.400"
    )


def test_probe_that_is_the_final_model_is_told():
    assert said(0, "auto")[0].endswith("the model is the network as it comes, its last layer fitted to all images")
