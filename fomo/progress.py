"""Progress bars, which tell of the minutes of a run, too."""

from collections.abc import Callable

from tqdm import tqdm


class Bar(tqdm):
    """A progress bar whose text begins with what `status` says: of the run whose clock is running, else nothing."""

    status: Callable[[], str] = staticmethod(str)

    @property
    def format_dict(self) -> dict:
        shown, status = super().format_dict, type(self).status()
        return shown | {"prefix": f"{status} | {shown['prefix']}" if status else shown["prefix"]}
