"""Which candidate head to take: the rules that choose one, and what their choices are worth. Of stored numbers only."""

import warnings
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import ConstantInputWarning, kendalltau, spearmanr

# A rule takes the operation of the highest score. What the scores are:
RULES = {
    "alpha": "largest alpha after the search (DARTS)",
    "perturbation": "largest rise of the supernet's loss when it is left out (DARTS-PT)",
    "one epoch": "highest accuracy of all trained alone, together in the bank, for one epoch",
    "halving": "the best survivor of successive halving in the bank",
    "alone": "highest accuracy of all trained alone, together in the bank, to the end",
}
RESAMPLES = 10_000  # of the permutation test
ROUNDED = 12  # digits of the means that are chosen by: the last ones would tell equal accuracies apart


def choose(scores: pd.DataFrame, rule: str, seed: int) -> int:
    """The operation that `rule` takes, alpha or alone.

    `scores` has the columns seed, operation, and one for each rule. alpha chooses by the one search of `seed`, as
    published; alone by the mean over all seeds, for it is cheap and a single training is noisy.
    """
    if rule == "alpha":
        scores = scores[scores["seed"] == seed]
    return int(scores.groupby("operation")[rule].mean().round(ROUNDED).idxmax())


def paired_test(chosen: np.ndarray, other: np.ndarray) -> float:
    """The probability that two equally good heads differ in accuracy by so much on these images, or more.

    Both arrays say whether an image is classified correctly: (seeds, images). A permutation test that swaps the heads
    image by image; for one seed it is McNemar's test. On images that took part in a choice it is too favourable to it.
    """
    difference = chosen.mean(axis=0) - other.mean(axis=0)
    # There are few sizes of a difference; how many images of each are swapped is binomial.
    sizes, counts = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    swapped = np.random.default_rng(0).binomial(counts, 0.5, size=(RESAMPLES, len(counts)))
    reached = np.abs((counts - 2 * swapped) @ sizes) >= abs(difference.sum()) - 1e-9
    return float((reached.sum() + 1) / (RESAMPLES + 1))


def rank(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row an operation: its alpha in the search of `seed`, its accuracy trained alone: mean, std, and by seed."""
    alone = scores.pivot(index="operation", columns="seed", values="alone").add_prefix("seed_")
    alpha = scores[scores["seed"] == seed].set_index("operation")["alpha"].sort_index()
    table = pd.DataFrame({"alpha": alpha})
    return table.assign(accuracy=alone.mean(axis=1), std=alone.std(axis=1)).join(alone).reset_index()


def judge(scores: pd.DataFrame, costs: pd.DataFrame, correct: np.ndarray, linear: int) -> pd.DataFrame:
    """A row for each rule: what its choice loses, how it ranks the operations, and what it costs.

    The yardstick is an operation's accuracy trained alone, in the mean over all seeds. Columns: rule; regret and
    regret_std over seeds (accuracy of the best operation minus that of the choice), top_3 (the share of seeds whose
    choice is among the three best), rank correlations spearman, spearman_std, kendall, kendall_std over all operations
    and spearman_10 within the ten best; seconds of a search. The last rules stand beside them: "alone, other seeds"
    chooses by the mean of the other seeds' trainings, "... or linear" keeps the linear head unless that choice really
    beats it; a random operation; linear, always; and how well one seed's trainings rank those of another (the ceiling).

    `costs`: seed, rule, seconds. `correct` (seeds, operations, images): whether an image is classified correctly.
    """
    alone = scores.pivot(index="seed", columns="operation", values="alone").to_numpy()
    accuracy, seeds = alone.mean(axis=0), len(alone)
    best10 = np.argsort(-accuracy)[:10]
    rows = []

    def add(rule: str, chosen: list[int], ranks: list[np.ndarray] = (), seconds: float = 0.0) -> None:
        regrets = accuracy.max() - accuracy[chosen]
        row = {"rule": rule, "regret": regrets.mean(), "regret_std": regrets.std(ddof=1) if seeds > 1 else np.nan}
        row["top_3"] = np.isin(chosen, np.argsort(-accuracy)[:3]).mean()
        rows.append(row | _correlations(ranks, [accuracy] * len(ranks), best10) | {"seconds": seconds})

    for rule in RULES:
        by_seed = scores.pivot(index="seed", columns="operation", values=rule).to_numpy()
        seconds = costs.loc[costs["rule"] == rule, "seconds"].mean()
        add(rule, by_seed.argmax(axis=1).tolist(), list(by_seed), seconds)
    if seeds > 1:
        others = [np.delete(np.arange(seeds), seed) for seed in range(seeds)]
        chosen = [int(alone[rest].mean(axis=0).argmax()) for rest in others]
        beaten = [
            alone[rest, choice].mean() > alone[rest, linear].mean()
            and paired_test(correct[rest, choice], correct[rest, linear]) < 0.05
            for rest, choice in zip(others, chosen, strict=True)
        ]
        seconds = (seeds - 1) * costs.loc[costs["rule"] == "alone", "seconds"].mean()
        add("alone, other seeds", chosen, [alone[rest].mean(axis=0) for rest in others], seconds)
        kept = [choice if better else linear for choice, better in zip(chosen, beaten, strict=True)]
        add("alone, other seeds, or linear", kept, seconds=seconds)
    add("linear", [linear] * seeds)
    mean_regret = (accuracy.max() - accuracy).mean()  # never below 0, as a difference of rounded means would be
    rows.append({"rule": "random operation", "regret": mean_regret, "top_3": 3 / len(accuracy)})
    pairs = list(combinations(range(seeds), 2))
    ceiling = _correlations([alone[a] for a, _ in pairs], [alone[b] for _, b in pairs], best10)
    return pd.DataFrame([*rows, {"rule": "one seed by another"} | ceiling])


def _correlations(ranks: list[np.ndarray], truths: list[np.ndarray], best10: np.ndarray) -> dict:
    """Means and standard deviations of the rank correlations of pairs, over all operations and within the ten best."""
    if not len(ranks):
        return {}
    with warnings.catch_warnings():  # where all are equally good there is no order: NaN
        warnings.simplefilter("ignore", ConstantInputWarning)
        values = {
            "spearman": [spearmanr(a, b).statistic for a, b in zip(ranks, truths, strict=True)],
            "kendall": [kendalltau(a, b).statistic for a, b in zip(ranks, truths, strict=True)],
            "spearman_10": [spearmanr(a[best10], b[best10]).statistic for a, b in zip(ranks, truths, strict=True)],
        }
    means = {name: np.mean(found) for name, found in values.items()}
    return means | {
        f"{name}_std": np.std(found, ddof=1) if len(found) > 1 else np.nan for name, found in values.items()
    }
