"""nbval's settings: what `make test` runs the notebooks with."""

import os
import tempfile

# A run of its own: nothing that is already computed is believed, and figures/ stays as it is.
FOLDER = tempfile.TemporaryDirectory(prefix="fomo-")
os.environ.setdefault("FOMO_RUNS", f"{FOLDER.name}/runs")
os.environ.setdefault("FOMO_FIGURES", f"{FOLDER.name}/figures")
os.environ["TQDM_DISABLE"] = "1"


def pytest_collectstart(collector):
    # Warnings come and go with versions, and tables are compared as text.
    if collector.fspath and collector.fspath.ext == ".ipynb":
        collector.skip_compare += ("stderr", "text/html")
