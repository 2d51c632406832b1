"""Search spaces: parameters of several kinds, some of which act only with others, and what a surrogate sees of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

When = tuple[str, object]  # (parameter, value): only with it does another parameter act


@dataclass(frozen=True)
class Float:
    """A number from `low` to `high`; with `log`, its logarithm is searched. It is None where `when` does not hold."""

    low: float
    high: float
    log: bool = False
    when: When | None = None

    def decode(self, place: float) -> float:
        """The value at `place` of the unit interval."""
        if self.log:
            return float(min(self.low * (self.high / self.low) ** place, self.high))
        return float(min(self.low + (self.high - self.low) * place, self.high))

    def encode(self, value: float) -> float:
        """The place of `value` in the unit interval."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def restore(self, stored: object) -> float:
        """The value that a table holds as `stored`."""
        return float(stored)

    def grid(self, count: int) -> list:
        """`count` values from low to high."""
        return [self.decode(place) for place in np.linspace(0, 1, count)]

    def columns(self, places: np.ndarray) -> np.ndarray:
        """What the surrogate sees of `places` (n): (n, 1) numbers in the unit interval."""
        return places[:, None]

    def describe(self) -> dict:
        return {"range": f"{self.low:g} to {self.high:g}", "scale": "log" if self.log else "linear"}


@dataclass(frozen=True)
class Choice:
    """One of a few values, words or numbers, none of them nearer to another."""

    choices: tuple
    when: When | None = None

    def decode(self, place: float):
        """The value at `place` of the unit interval, of which each has an equal share."""
        return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]

    def encode(self, value) -> float:
        """The place of `value`: the middle of its share."""
        return (self.choices.index(value) + 0.5) / len(self.choices)

    def restore(self, stored: object) -> object:
        """The choice that a table holds as `stored`: in a column with gaps, or with words, 32 is 32.0, or "32"."""
        return next((choice for choice in self.choices if choice == stored or str(choice) == str(stored)), stored)

    def grid(self, count: int) -> list:
        return list(self.choices)

    def columns(self, places: np.ndarray) -> np.ndarray:
        """(n, choices) zeros, and a one in the column of the choice."""
        numbers = np.minimum((places * len(self.choices)).astype(int), len(self.choices) - 1)
        return np.eye(len(self.choices))[numbers]

    def describe(self) -> dict:
        return {"range": ", ".join(map(str, self.choices)), "scale": "choice"}


class Space(dict):
    """Parameters by name. A configuration is a dict of values, None for those that do not act in it.

    A place is a point of the unit cube, one coordinate a parameter; several places can be one configuration. Raises
    ValueError for a `when` that names no choice of the space, and for a choice None.

    >>> Space(optimizer=Choice(("adam", "sgd")), momentum=Float(0.1, 0.9, when=("optimizer", "sgd"))).decode([0.2, 0.5])
    {'optimizer': 'adam', 'momentum': None}
    """

    def __init__(self, **parameters: Float | Choice):
        super().__init__(parameters)
        for name, parameter in self.items():
            if None in getattr(parameter, "choices", ()):
                raise ValueError(f"{name} has a choice None, which stands for parameters that do not act")
            if parameter.when:
                other, value = parameter.when
                if value not in getattr(self.get(other), "choices", ()) or self[other].when:
                    raise ValueError(f"{name} acts with {other} = {value!r}, which is no choice that always acts")

    def decode(self, place: Sequence[float]) -> dict:
        """The configuration at `place`."""
        values = {name: parameter.decode(x) for (name, parameter), x in zip(self.items(), place, strict=True)}
        return self.activate(values)

    def activate(self, values: dict) -> dict:
        """`values` with None for the parameters that do not act."""
        acting = {name: not p.when or values[p.when[0]] == p.when[1] for name, p in self.items()}
        return {name: value if acting[name] else None for name, value in values.items()}

    def encode(self, configuration: dict) -> np.ndarray:
        """A place of `configuration`; the middle where a parameter does not act."""
        values = [configuration[name] for name in self]
        return np.array(
            [0.5 if v is None else p.encode(v) for v, p in zip(values, self.values(), strict=True)], dtype=float
        )

    def columns(self, places: np.ndarray) -> np.ndarray:
        """What the surrogate sees of `places` (n, parameters): (n, columns) numbers.

        A parameter that does not act is a point at the centre of a quarter circle; where it acts, its values lie on the
        circle (the arc kernel of Swersky et al., arXiv:1409.4011): so none of them is nearer to "does not act".
        """
        blocks = []
        for number, (_, parameter) in enumerate(self.items()):
            block = parameter.columns(places[:, number])
            if parameter.when:
                if not isinstance(parameter, Choice):
                    angle = np.pi / 2 * block
                    block = np.hstack([np.cos(angle), np.sin(angle)])
                block = block * self._acts(parameter.when, places)[:, None]
            blocks.append(block)
        return np.hstack(blocks)

    def _acts(self, when: When, places: np.ndarray) -> np.ndarray:
        parameter, number = self[when[0]], list(self).index(when[0])
        return parameter.columns(places[:, number])[:, parameter.choices.index(when[1])]

    def describe(self) -> pd.DataFrame:
        """The space as a table: parameter, range, scale, and where it acts."""
        acts = {name: f"with {p.when[0]} {p.when[1]}" if p.when else "always" for name, p in self.items()}
        return pd.DataFrame([{"parameter": n} | p.describe() | {"acts": acts[n]} for n, p in self.items()])
