import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import toys

import fomo
from fomo.config import CHOICES, make_config
from fomo.networks.bank import HeadBank
from fomo.networks.heads import HEADS, LINEAR, Head
from fomo.networks.inference import predict
from fomo.stages import features, head_search
from fomo.stages.common import STAGES
from fomo.stages.preprocessing import image_loader
from fomo.stages.selection import RULES, choose
from fomo.storage import read_json, read_table
from fomo.training import darts
from fomo.training.bank_training import fit_bank

LOSSES = ["train_loss", "validation_loss", "validation_accuracy"]
TABLES = ("history", "ranking", "scores", "rules")


@pytest.fixture
def rerun(copied, dataset):
    """Makes the toy run with other settings of the head search; what does not depend on them is stored already.

    `before` is the first stage to compute anew.
    """

    def make(before="7_darts", **settings):
        for stage in list(STAGES)[list(STAGES).index(before) :]:
            shutil.rmtree(copied.folder / stage, ignore_errors=True)
        return toys.tiny_run(dataset, **settings)

    return make


@pytest.mark.parametrize(("limit", "counts"), [(0, [16, 16, 16]), (15, [5, 5, 5]), (99, [16, 16, 16])])
def test_head_search_sees_at_most_so_many_images_of_each_class(dataset, copied, limit, counts):
    run = toys.tiny_run(dataset, head_images=limit)
    assert run.folder == copied.folder
    everything, sample = fomo.extract_features(run), features.sample_features(run)
    assert np.bincount(sample.train_labels).tolist() == counts
    pairs = {(*row, label) for row, label in zip(everything.train.tolist(), everything.train_labels, strict=True)}
    assert {(*row, label) for row, label in zip(sample.train.tolist(), sample.train_labels, strict=True)} <= pairs
    assert np.array_equal(sample.validation, everything.validation)


def tables(run):
    """All that the search stored, but for the seconds."""
    folder = run.folder / "7_darts"
    stored = {name: read_table(folder / f"{name}.csv").drop(columns="seconds", errors="ignore") for name in TABLES}
    return stored, read_json(folder / "choice.json")


def assert_same(first, second):
    for name in TABLES:
        pd.testing.assert_frame_equal(first[0][name], second[0][name], check_exact=True)
    assert first[1] == second[1]


def break_off(monkeypatch, module, name, calls):
    """`module.name` works so many times; then it is as if someone had pressed Ctrl-C."""
    function, left = getattr(module, name), iter(range(calls))

    def interrupted(*args, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*args, **options)

    monkeypatch.setattr(module, name, interrupted)


def correct(fifth, linear, images=1000):
    """The fifth head and the linear one get so many of the images right, with two seeds; the others none."""
    right = np.zeros(37, int)
    right[4], right[HEADS.index(LINEAR)] = fifth, linear
    return np.stack([np.arange(images) < right[:, None]] * 2)


# ---- the features


def test_features_are_what_the_finetuned_backbone_computes(finished):
    features = fomo.extract_features(finished.run)
    backbone = fomo.finetune_best(finished.run).model.backbone
    part = fomo.preprocess(finished.run).part("validation")
    computed, labels = predict(backbone, image_loader(finished.run, part, backbone), torch.device("cpu"))
    assert np.allclose(features.validation, computed, atol=1e-5)
    assert features.validation_labels.tolist() == labels.tolist()


def test_features_are_read_as_a_memory_map(finished):
    assert isinstance(fomo.extract_features(finished.run).train, np.memmap)


# ---- the search


def test_search_leaves_the_alphas_of_every_epoch_and_a_ranking_of_the_37(finished):
    search = fomo.search_head(finished.run)
    alphas = search.history.filter(like="alpha_")
    assert alphas.shape == (1 + toys.SETTINGS["darts_epochs"], 37)
    assert search.ranking["alpha"].tolist() == alphas.iloc[-1].tolist()
    assert search.ranking["name"].tolist() == [head.name for head in HEADS]
    assert search.ranking["activation"].value_counts().to_dict() == {"ReLU": 12, "Tanh": 12, "Sigmoid": 12, "linear": 1}
    assert search.ranking["accuracy"].tolist() == pytest.approx(search.ranking[["seed_0", "seed_1"]].mean(axis=1))


def test_scores_are_those_of_every_rule_operation_and_seed(finished):
    stored, _ = tables(finished.run)
    scores = stored["scores"]
    assert list(scores.columns) == ["seed", "operation", *RULES]
    assert scores.groupby("seed")["operation"].apply(list).tolist() == [list(range(37))] * 2
    assert np.isfinite(scores).all(axis=None)
    assert scores[scores["seed"] == 0]["alpha"].tolist() == stored["ranking"]["alpha"].tolist()
    assert scores["one epoch"].tolist() == scores["alone"].tolist()  # the toy run trains for one epoch
    assert scores[["alone", "one epoch"]].stack().between(0, 1).all()


def test_rules_are_judged_with_what_they_cost(finished):
    rules = fomo.search_head(finished.run).rules.set_index("rule")
    assert list(rules.index)[:5] == list(RULES)
    assert (rules["regret"].dropna() >= 0).all()
    assert (rules.loc[list(RULES), "seconds"] > 0).all()


def test_choice_tells_how_the_head_was_taken(finished):
    search = fomo.search_head(finished.run)
    assert list(search.choice.index) == ["rule", "chosen", "accuracy", "linear", "p", "taken"]
    chosen = HEADS[choose(tables(finished.run)[0]["scores"], "alone", 0)]
    assert search.choice[["rule", "chosen"]].tolist() == ["alone", chosen.name]
    assert search.choice["taken"] == search.head.name
    alone = search.ranking.set_index("name")["accuracy"]
    assert search.choice[["accuracy", "linear"]].tolist() == pytest.approx([alone[chosen.name], alone["linear"]])


@pytest.fixture
def told(finished, monkeypatch):
    """What each seed's search and trainings have found is told, and not computed: each rule has an operation of its
    own, and so has each seed of a search; all trained operations get all images right. The operations by rule."""
    wanted = {name: 3 * number + 1 for number, name in enumerate(RULES)}
    history = fomo.search_head(finished.run).history
    costs = pd.DataFrame({"rule": list(RULES), "seconds": 1.0})

    def searched(run, stage, seed):
        scores = pd.DataFrame({"seed": seed, "operation": range(37)} | dict.fromkeys(RULES, 0.0))
        for name, operation in wanted.items():
            scores.loc[operation, name] = 1.0 if seed == 0 or name != "alpha" else 0.0
        return history, scores, costs.assign(seed=seed), np.ones((37, 12), bool)

    monkeypatch.setattr(head_search, "_search_once", searched)
    return wanted


@pytest.mark.parametrize("rule", CHOICES["selection"])
def test_head_is_chosen_by_the_rule_that_is_asked_for(rerun, told, rule):
    search = fomo.search_head(rerun(selection=rule, keep_linear=False))
    assert search.head == HEADS[told[rule]]
    assert search.choice["rule"] == rule


@pytest.mark.parametrize(
    ("keep_linear", "right", "taken"),
    [
        (True, (900, 800), HEADS[4]),
        (True, (900, 899), LINEAR),
        (True, (900, 900), LINEAR),
        (True, (800, 900), LINEAR),
        (False, (900, 899), HEADS[4]),
        (False, (800, 900), HEADS[4]),
    ],
)
def test_linear_is_kept_unless_it_is_beaten(keep_linear, right, taken):
    config = make_config("fashion_sample", keep_linear=keep_linear)
    choice = head_search._take(config, 4, correct(*right))
    assert choice["taken"] == taken.name
    assert Head(**choice["head"]) == taken
    assert (choice["accuracy"], choice["linear"]) == pytest.approx((right[0] / 1000, right[1] / 1000))
    assert (choice["p"] < 0.05) == (abs(right[0] - right[1]) > 10)


def test_run_that_keeps_linear_goes_on_with_it(rerun, told):
    search = fomo.search_head(rerun(keep_linear=True))
    assert (search.head, search.choice["chosen"]) == (LINEAR, HEADS[told["alone"]].name)


def test_search_that_is_killed_goes_on_to_the_same_tables(rerun, finished, monkeypatch):
    """Killed four times in the second seed: before its search, in it, before its trainings, before its halving."""
    run = rerun()
    for module, name, calls in (
        (darts, "search", 1),
        (darts, "_record", 1),
        (head_search, "fit_bank", 1),
        (head_search, "successive_halving", 1),
    ):
        with monkeypatch.context() as patch:
            break_off(patch, module, name, calls)
            with pytest.raises(KeyboardInterrupt):
                fomo.search_head(run)
    fomo.search_head(run)
    assert_same(tables(run), tables(finished.run))
    assert not list((run.folder / "7_darts").glob("*.pt"))


# ---- the study of the head, and the final head


@pytest.fixture
def tuned(rerun):
    """Makes the trials of the head's study in batches of so many."""

    def tune(size, **settings):
        return fomo.tune_head(rerun("8_head_tuning", head_batch=size, **settings))

    return tune


def test_trials_in_a_batch_are_those_of_one_after_another(tuned):
    """The third trial follows from the others: there, a batch knows less."""
    single, batch = tuned(1), tuned(3)
    assert [single.configuration(n) for n in (0, 1)] == [batch.configuration(n) for n in (0, 1)]
    for name in LOSSES:
        assert single.trials[name][:2].tolist() == pytest.approx(batch.trials[name][:2].tolist(), abs=1e-4)
    assert (batch.trials["status"] == "complete").all()
    assert len(single.trials) == len(batch.trials) == 3


def test_trials_of_a_batch_begin_with_the_same_weights(tuned, monkeypatch):
    banks = []

    def build(*args, **options):
        banks.append(HeadBank(*args, **options))
        return banks[-1]

    monkeypatch.setattr(head_search, "HeadBank", build)
    monkeypatch.setattr(head_search, "fit_bank", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tuned(3)
    first, *others = [banks[0].module(place).state_dict() for place in range(3)]
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


@pytest.mark.parametrize(("size", "calls"), [(1, 1), (2, 1)])
def test_study_that_is_killed_goes_on_to_the_same_trials(tuned, monkeypatch, dataset, size, calls):
    expected = tuned(size).trials
    with monkeypatch.context() as patch:
        break_off(patch, head_search, "fit_bank", calls)
        with pytest.raises(KeyboardInterrupt):
            tuned(size)
    resumed = fomo.tune_head(toys.tiny_run(dataset, head_batch=size)).trials
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)


@pytest.mark.parametrize("size", [1, 2])
def test_trial_that_diverges_does_not_end_the_study(tuned, monkeypatch, size):
    wild = {"lr": 1e38, "momentum": 0.9, "weight_decay": 0.0, "optimizer": "sgd"}

    def fit(bank, configurations, *rest, **options):
        configurations = [wild if one == head_search.HEAD_FIRST else one for one in configurations]
        return fit_bank(bank, configurations, *rest, **options)

    monkeypatch.setattr(head_search, "fit_bank", fit)
    trials = tuned(size).trials
    assert trials["status"].tolist() == ["diverged", "complete", "complete"]
    assert trials["objective"][0] == math.inf


def test_final_head_is_the_best_trial_of_the_second_study(finished):
    study, final = fomo.tune_head(finished.run), fomo.train_head(finished.run)
    assert final.configuration == study.configuration(study.best["trial"])
    assert final.kept[LOSSES].tolist() == pytest.approx(study.best[LOSSES].tolist(), abs=1e-4)
