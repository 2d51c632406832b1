"""Progress bars, which tell of the minutes of a run, too."""

import sys
from collections.abc import Callable
from contextlib import contextmanager

from tqdm import tqdm


class Bar(tqdm):
    """A progress bar whose text begins with what `status` says: of the run whose clock is running, else nothing."""

    status: Callable[[], str] = staticmethod(str)
    everywhere = True  # or on a terminal only

    def __init__(self, *args, **options):
        hidden = {} if self.everywhere or sys.stderr.isatty() else {"disable": True}
        super().__init__(*args, **options | hidden)

    @property
    def format_dict(self) -> dict:
        shown, status = super().format_dict, type(self).status()
        return shown | {"prefix": f"{status} | {shown['prefix']}" if status else shown["prefix"]}


@contextmanager
def on_terminals():
    """Bars are shown on a terminal only in the block."""
    Bar.everywhere = False
    try:
        yield
    finally:
        Bar.everywhere = True
