import doctest
import math

import numpy as np
import pytest

from fomo.study import space
from fomo.study.space import Choice, Float, Space

SPACE = Space(
    lr=Float(1e-6, 1e-1, log=True),
    momentum=Float(0.1, 0.9, when=("optimizer", "sgd")),
    layers=Choice((1, 2, 3)),
    optimizer=Choice(("adam", "sgd", "rmsprop")),
    nesterov=Choice((True, False), when=("optimizer", "sgd")),
)
FLOATS = [Float(1e-6, 1e-1, log=True), Float(0.0, 1e-2), Float(-3.0, 5.0), Float(2, 7)]
CHOICES = [Choice(("adam", "sgd", "rmsprop")), Choice((2, 3, 4)), Choice((True, False)), Choice(("only",))]


def counts(parameter, places=600):
    """How often each value is met at evenly spaced places."""
    values, number = np.unique([parameter.decode((x + 0.5) / places) for x in range(places)], return_counts=True)
    return dict(zip(values.tolist(), number.tolist(), strict=True))


# ---- one parameter


@pytest.mark.parametrize("parameter", FLOATS)
def test_number_is_encoded_to_its_place_and_back(parameter):
    assert parameter.decode(0) == pytest.approx(parameter.low)
    assert parameter.decode(1) == pytest.approx(parameter.high)
    for place in np.linspace(0, 1, 11):
        assert parameter.encode(parameter.decode(place)) == pytest.approx(place, abs=1e-12)
        assert type(parameter.decode(place)) is float


@pytest.mark.parametrize("log", [False, True])
def test_number_never_exceeds_its_bounds_by_rounding(log):
    for low, high in np.sort(np.random.default_rng(0).integers(1, 1000, (300, 2)) / 1000):
        assert low <= Float(low, high, log).decode(0.0) <= Float(low, high, log).decode(1.0) <= high


def test_log_scale_halves_the_orders_of_magnitude():
    assert Float(1e-6, 1e-2, log=True).decode(0.5) == pytest.approx(1e-4)
    assert Float(0.0, 1e-2).decode(0.5) == pytest.approx(5e-3)


@pytest.mark.parametrize("parameter", CHOICES)
def test_every_choice_is_decoded_from_its_own_place(parameter):
    assert [parameter.decode(parameter.encode(choice)) for choice in parameter.choices] == list(parameter.choices)
    assert (parameter.decode(0.0), parameter.decode(1.0)) == (parameter.choices[0], parameter.choices[-1])


def test_choices_have_equal_shares_and_lie_in_their_middle():
    assert [Choice((4, 2)).encode(4), Choice((4, 2)).encode(2)] == [0.25, 0.75]
    assert counts(Choice((4, 2, 3))) == {2: 200, 3: 200, 4: 200}


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (Float(1, 3), [1, 1.5, 2, 2.5, 3]),
        (Float(1, 16, log=True), [1, 2, 4, 8, 16]),
        (Choice(("b", "a")), ["b", "a"]),
    ],
)
def test_grid_goes_from_low_to_high_without_repetition(parameter, expected):
    assert parameter.grid(5) == (pytest.approx(expected) if type(parameter) is Float else expected)


@pytest.mark.parametrize(
    ("parameter", "value", "stored"),
    [
        (Choice((16, 32)), 32, np.float64(32)),  # a column with gaps
        (Choice(("1", "2")), "2", np.int64(2)),  # words that look like numbers
        (Choice(("none", 0.1)), 0.1, "0.1"),  # a column of words and numbers
        (Choice((True, False)), False, "False"),
        (Float(0, 1), 1.0, np.int64(1)),
    ],
)
def test_value_is_restored_from_what_a_table_makes_of_it(parameter, value, stored):
    assert parameter.restore(stored) == value
    assert type(parameter.restore(stored)) is type(value)


# ---- what the surrogate sees


def columns(**values):
    """One row of the space's columns, by a configuration; the others stay as they are here."""
    configuration = {"lr": 1e-3, "momentum": 0.5, "layers": 2, "optimizer": "sgd", "nesterov": True} | values
    return SPACE.columns(SPACE.encode(SPACE.activate(configuration))[None])[0]


def test_choice_is_seen_as_one_column_each():
    seen = CHOICES[0].columns(np.array([0.0, 0.4, 1.0]))
    assert seen.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_columns_are_numbers_of_every_parameter_in_turn():
    assert columns().tolist() == pytest.approx([0.6, math.sqrt(0.5), math.sqrt(0.5), 0, 1, 0, 0, 1, 0, 1, 0])


@pytest.mark.parametrize("momentum", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [True, False])
def test_values_of_a_conditional_parameter_are_all_as_far_from_not_acting(momentum, nesterov):
    acts, rests = columns(momentum=momentum, nesterov=nesterov), columns(optimizer="adam")
    assert rests[1:3].tolist() == rests[-2:].tolist() == [0, 0]
    assert np.linalg.norm(acts[1:3]) == pytest.approx(1)
    assert np.linalg.norm(acts[-2:]) == 1


def test_values_of_a_conditional_number_are_apart_by_their_distance():
    seen = [columns(momentum=value)[1:3] for value in (0.1, 0.5, 0.9)]
    near, far = np.linalg.norm(seen[0] - seen[1]), np.linalg.norm(seen[0] - seen[2])
    assert 0 < near < far


def test_place_of_an_inactive_parameter_makes_no_difference():
    places = np.full((5, 5), 0.5)
    places[:, 1] = places[:, 4] = np.linspace(0, 1, 5)
    places[:, 3] = SPACE["optimizer"].encode("adam")
    assert (SPACE.columns(places) == SPACE.columns(places[:1])).all()


def test_space_of_one_kind_has_a_column_a_parameter():
    places = np.random.default_rng(0).random((7, 2))
    assert (Space(x=Float(0, 1), y=Float(-5, 5)).columns(places) == places).all()


# ---- the space


def test_configuration_is_encoded_and_decoded_back():
    for place in np.random.default_rng(0).random((50, len(SPACE))):
        configuration = SPACE.decode(place)
        again = SPACE.decode(SPACE.encode(configuration))
        assert list(configuration) == list(SPACE)
        assert again == {k: pytest.approx(v) if isinstance(v, float) else v for k, v in configuration.items()}


def test_activate_leaves_out_what_does_not_act():
    values = {"lr": 1e-3, "momentum": 0.5, "layers": 2, "optimizer": "sgd", "nesterov": False}
    assert SPACE.activate(values) == values
    others = values | {"optimizer": "adam"}
    assert SPACE.activate(others) == others | {"momentum": None, "nesterov": None}


def test_inactive_parameter_lies_in_the_middle():
    place = SPACE.encode(SPACE.activate(SPACE.decode([0.1] * 5) | {"optimizer": "adam"}))
    assert (place[1], place[4]) == (0.5, 0.5)


def test_place_of_another_length_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        SPACE.decode([0.5] * 4)


@pytest.mark.parametrize(
    "when",
    [
        ("optimiser", "sgd"),  # no such parameter
        ("optimizer", "sgdm"),  # no such choice
        ("lr", 1e-3),  # no choice at all
        ("layers", 4),
        ("nesterov", True),  # acts only with another
        ("other", 0),  # itself
    ],
)
def test_condition_that_names_no_choice_is_refused(when):
    with pytest.raises(ValueError, match=f"other acts with {when[0]} = {when[1]!r}, which is no choice that always"):
        Space(**SPACE, other=Choice((0, 1), when=when))


def test_choice_none_is_refused():
    with pytest.raises(ValueError, match="norm has a choice None"):
        Space(norm=Choice((None, "batch")))


def test_space_is_described_as_a_table():
    table = SPACE.describe().set_index("parameter")
    assert table.loc["lr"].tolist() == ["1e-06 to 0.1", "log", "always"]
    assert table.loc["momentum"].tolist() == ["0.1 to 0.9", "linear", "with optimizer sgd"]
    assert table.loc["layers"].tolist() == ["1, 2, 3", "choice", "always"]
    assert table.loc["optimizer"].tolist() == ["adam, sgd, rmsprop", "choice", "always"]
    assert table.loc["nesterov"].tolist() == ["True, False", "choice", "with optimizer sgd"]


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(space)
    assert result.attempted == 1
    assert result.failed == 0
