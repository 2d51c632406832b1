"""The names of classes: brought to one form, told apart, and in order."""

import re
import unicodedata
from decimal import Decimal

import pandas as pd

from fomo.config import UserError, some


def tidy(labels: pd.Series) -> pd.Series:
    """Class names without spaces around them, each letter written in one way (Unicode NFC)."""
    known = {label: unicodedata.normalize("NFC", label).strip() for label in labels.unique()}
    return labels.map(known)


def ordered(name: str, labels: pd.Series) -> list[str]:
    """The classes that occur in `labels`: whole numbers by value, other names as text. Raises `UserError` where two of
    them differ in form only, such as cat and Cat, or 0 and 0.0."""
    classes = sorted(set(labels))
    forms: dict[str, list[str]] = {}
    for one in classes:
        forms.setdefault(_form(one), []).append(one)
    alike = [" and ".join(map(repr, names)) for names in forms.values() if len(names) > 1]
    if alike:
        raise UserError(f"{name} has classes whose names differ in form only: {some(alike)}; write each in one way")
    if all(re.fullmatch(r"[+-]?\d{1,15}", one) for one in classes):
        return sorted(classes, key=int)
    return classes


def _form(label: str) -> str:
    """What two names have in common that mean the same. Letters, as classes of handwriting, may be small and large."""
    plain = " ".join(unicodedata.normalize("NFKC", label).strip("\"'` ").split())
    if re.fullmatch(r"[+-]?\d+(\.\d*)?", plain):
        return str(Decimal(plain).normalize())
    return plain.casefold() if len(plain) > 1 else plain
