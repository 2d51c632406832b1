import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from fomo.config import CHOICES
from fomo.stages.selection import RULES, choose, judge, paired_test, rank

OPERATIONS, LINEAR = 12, 11
ALONE = np.linspace(0.9, 0.35, OPERATIONS)  # operation 0 is the best, 0.05 before the next
SECONDS = {"alpha": 10.0, "perturbation": 11.0, "one epoch": 1.0, "halving": 3.0, "alone": 4.0}


def made_up(seeds=2, **scores):
    """Scores of every rule: those given, (operations) or (seeds, operations), and ALONE otherwise."""
    tables = []
    for seed in range(seeds):
        rules = {rule: np.broadcast_to(scores.get(rule, ALONE), (seeds, OPERATIONS))[seed] for rule in RULES}
        tables.append(pd.DataFrame({"seed": seed, "operation": range(OPERATIONS)} | rules))
    return pd.concat(tables)


def images(accuracies, count=1000):
    """Which of `count` images are right, (operations, images): the first ones, as many as the accuracy says."""
    return np.arange(count) < count * np.asarray(accuracies)[:, None]


def judged(scores, correct=None):
    seeds = scores["seed"].nunique()
    correct = np.stack([images(ALONE)] * seeds) if correct is None else correct
    rows = [{"seed": seed, "rule": rule, "seconds": SECONDS[rule]} for seed in range(seeds) for rule in RULES]
    return judge(scores, pd.DataFrame(rows), correct, LINEAR).set_index("rule")


def discordant(only_first, only_second, both=20):
    """Two heads of one seed, of which each alone gets so many images right."""
    first = np.repeat([1, 0, 1, 0], [only_first, only_second, both, 5])
    second = np.repeat([0, 1, 1, 0], [only_first, only_second, both, 5])
    return first[None], second[None]


def test_config_allows_rules_that_there_are():
    assert set(CHOICES["selection"]) < set(RULES)


# ---- choosing


def test_alpha_chooses_by_the_given_seed_only():
    scores = made_up(alpha=np.stack([np.eye(OPERATIONS)[3], 9 * np.eye(OPERATIONS)[5]]))
    assert [choose(scores, "alpha", seed) for seed in (0, 1)] == [3, 5]


def test_alone_chooses_by_the_mean_over_seeds():
    by_seed = np.zeros((2, OPERATIONS))
    by_seed[0, 3], by_seed[1, 5], by_seed[:, 7] = 0.9, 0.8, 0.6  # the best of neither seed
    assert [choose(made_up(alone=by_seed), "alone", seed) for seed in (0, 1)] == [7, 7]


def test_choice_does_not_depend_on_the_order_of_the_rows():
    scores = made_up().sample(frac=1, random_state=0)
    assert {choose(scores, rule, 1) for rule in CHOICES["selection"]} == {0}


# ---- the paired test


def test_identical_heads_do_not_differ():
    correct = images([0.8])
    assert paired_test(correct, correct) == 1.0


@pytest.mark.parametrize(("first", "second"), [(30, 14), (5, 9), (1, 0), (8, 8), (60, 41), (12, 1)])
def test_paired_test_of_one_seed_is_the_exact_mcnemar_test(first, second):
    expected = binomtest(first, first + second).pvalue
    assert paired_test(*discordant(first, second)) == pytest.approx(expected, abs=0.02)


def test_paired_test_is_symmetric():
    first, second = discordant(30, 18)
    assert paired_test(first, second) == paired_test(second, first)


def test_strong_difference_is_found_and_its_direction_does_not_matter():
    assert paired_test(*discordant(90, 20)) < 0.001
    assert paired_test(*discordant(20, 90)) < 0.001


def test_images_that_both_get_right_or_wrong_do_not_matter():
    assert paired_test(*discordant(30, 14, both=5000)) == paired_test(*discordant(30, 14))


def test_images_are_swapped_with_all_their_seeds():
    """Three equal seeds are no more evidence than one; three that disagree are less than three times the images."""
    first, second = discordant(12, 4)
    three = paired_test(np.repeat(first, 3, axis=0), np.repeat(second, 3, axis=0))
    assert three == pytest.approx(paired_test(first, second), abs=0.02)
    assert three > 5 * paired_test(*discordant(36, 12))


def test_paired_test_of_several_seeds_is_that_of_every_swap():
    rng = np.random.default_rng(1)
    first, second = rng.random((3, 12)) < 0.9, rng.random((3, 12)) < 0.6
    difference = first.mean(axis=0) - second.mean(axis=0)
    signs = 1 - 2 * ((np.arange(2**12)[:, None] >> np.arange(12)) & 1)
    exact = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9).mean()
    assert 0.001 < exact < 0.5
    assert paired_test(first, second) == pytest.approx(exact, abs=0.02)


def test_paired_test_of_many_images_takes_little_memory():
    rng = np.random.default_rng(0)
    first, second = (rng.random((5, 200_000)) < 0.9 for _ in range(2))
    assert 0.01 < paired_test(first, second) <= 1  # 10000 signs of each image would be 16 GB


# ---- ranking and judgement


def test_ranking_has_the_alphas_of_one_seed_and_the_accuracies_of_all():
    alone = np.stack([np.full(OPERATIONS, 0.2), np.full(OPERATIONS, 0.4)])
    alpha = np.stack([np.arange(OPERATIONS), -np.arange(OPERATIONS)])
    scores = made_up(alone=alone, alpha=alpha).sample(frac=1, random_state=0)
    ranking = rank(scores, 1)
    assert ranking["operation"].tolist() == list(range(OPERATIONS))
    assert ranking["alpha"].tolist() == (-np.arange(OPERATIONS)).tolist()
    assert np.allclose(ranking[["accuracy", "std", "seed_0", "seed_1"]], [0.3, 0.2 / 2**0.5, 0.2, 0.4])


def test_perfect_ranking_has_no_regret_and_correlation_one():
    row = judged(made_up()).loc["alpha"]
    assert row[["regret", "regret_std", "top_3"]].tolist() == [0, 0, 1]
    assert row[["spearman", "kendall", "spearman_10"]].tolist() == pytest.approx([1, 1, 1])
    assert row[["spearman_std", "kendall_std"]].tolist() == pytest.approx([0, 0], abs=1e-9)


def test_reversed_ranking_has_all_the_regret_there_is():
    row = judged(made_up(perturbation=-ALONE)).loc["perturbation"]
    assert row[["regret", "top_3"]].tolist() == pytest.approx([0.55, 0])
    assert row[["spearman", "kendall", "spearman_10"]].tolist() == pytest.approx([-1, -1, -1])


def test_one_swapped_pair_costs_what_it_should():
    swapped = ALONE[[1, 0, *range(2, OPERATIONS)]]
    row = judged(made_up(**{"one epoch": swapped})).loc["one epoch"]
    assert row[["regret", "top_3"]].tolist() == pytest.approx([0.05, 1])
    assert row["spearman"] == pytest.approx(1 - 6 * 2 / (12 * 143))
    assert row["spearman_10"] == pytest.approx(1 - 6 * 2 / (10 * 99))
    assert row["kendall"] == pytest.approx(1 - 2 / 66)


def test_regret_is_the_mean_over_seeds_with_its_standard_deviation():
    by_seed = np.stack([np.eye(OPERATIONS)[0], np.eye(OPERATIONS)[4]])
    row = judged(made_up(halving=by_seed)).loc["halving"]
    assert row["regret"] == pytest.approx(0.1)
    assert row["regret_std"] == pytest.approx(np.std([0, 0.2], ddof=1))
    assert row["top_3"] == 0.5


def test_yardstick_is_the_mean_accuracy_over_seeds():
    """Each seed's training alone points at another operation than the mean does."""
    alone = np.stack([ALONE, ALONE])
    alone[0, 3], alone[1, 5] = 0.95, 0.97
    row = judged(made_up(alone=alone)).loc["alone"]
    mean = alone.mean(axis=0)
    assert row["regret"] == pytest.approx(mean.max() - mean[[3, 5]].mean())
    assert row["regret"] > 0


def test_choice_by_the_other_seeds_does_not_look_at_its_own():
    """Each of two seeds was lucky with one operation: the other seed's choice, and not the best in the mean."""
    alone = np.stack([ALONE, ALONE])
    alone[0, 3], alone[1, 5] = 0.99, 0.97
    rules, mean = judged(made_up(alone=alone)), alone.mean(axis=0)
    assert mean.argmax() == 0
    row = rules.loc["alone, other seeds"]
    assert row["regret"] == pytest.approx(mean[0] - mean[[5, 3]].mean())
    assert row["top_3"] == 0.5  # 3 is among the best three, 5 is not
    assert row["seconds"] == pytest.approx(SECONDS["alone"])
    assert judged(made_up(3)).loc["alone, other seeds", "seconds"] == pytest.approx(2 * SECONDS["alone"])


def test_linear_is_kept_unless_it_is_really_beaten():
    rules = judged(made_up())
    assert rules.loc["alone, other seeds, or linear", "regret"] == 0
    hardly = ALONE.copy()
    hardly[LINEAR] = 0.899  # a better mean, but by one image in a thousand
    correct = np.stack([images(hardly)] * 2)
    kept = judged(made_up(alone=hardly), correct)
    assert kept.loc["alone, other seeds", "regret"] == 0
    assert kept.loc["alone, other seeds, or linear", "regret"] == pytest.approx(0.001)
    assert kept.loc["linear", "regret"] == pytest.approx(0.001)
    assert kept.loc["linear", "regret_std"] == 0


def test_random_operation_loses_the_mean():
    row = judged(made_up()).loc["random operation"]
    assert row[["regret", "top_3"]].tolist() == pytest.approx([0.9 - ALONE.mean(), 3 / 12])


def test_ceiling_is_how_well_one_seed_ranks_another():
    alone = np.stack([ALONE, ALONE[::-1]])
    assert judged(made_up(alone=alone)).loc["one seed by another", "spearman"] == pytest.approx(-1)
    assert judged(made_up()).loc["one seed by another", "kendall"] == pytest.approx(1)


def test_seconds_are_those_of_a_search():
    rules = judged(made_up())
    assert rules.loc[list(RULES), "seconds"].to_dict() == SECONDS
    assert rules.loc["linear", "seconds"] == 0


def test_one_seed_is_judged_without_its_spread():
    rules = judged(made_up(1))
    assert list(rules.index) == [*RULES, "linear", "random operation", "one seed by another"]
    assert rules.loc[list(RULES), "regret"].tolist() == [0] * 5
    assert rules[["regret_std", "spearman_std", "kendall_std"]].isna().all(axis=None)
    assert rules.loc["alpha", "spearman"] == pytest.approx(1)
    assert rank(made_up(1), 0)["std"].isna().all()


def test_of_equal_means_the_first_is_taken_however_they_are_rounded():
    alone = np.full((3, OPERATIONS), 0.3)
    alone[:, 0], alone[:, 1] = (0.5, 0.5, 0.65), 0.55
    scores = made_up(3, alone=alone)
    assert scores.groupby("operation")["alone"].mean().idxmax() == 1  # by 1e-16
    assert choose(scores, "alone", 0) == 0


def test_where_all_are_equally_good_nothing_is_lost():
    assert (judged(made_up(alone=np.full(OPERATIONS, 0.2)))["regret"].dropna() == 0).all()
