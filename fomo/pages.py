"""Notebooks as executed copies, and as pages that a browser shows without the internet."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import papermill
import torch
from latex2mathml.converter import convert
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from fomo.config import ROOT, UserError
from fomo.storage import write_bytes

KERNELS = 2  # at most, and one for each core; each loads torch anew, which takes a core's seconds and memory
ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "FOMO_FRESH": "0",  # everything is stored by now
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # or the pages have no figures where it is set to Agg
}
# Before a notebook begins, in its folder, what the one before it has left goes. Only the loaded modules stay.
RESET = """
import os
import matplotlib.pyplot
matplotlib.pyplot.close("all")
os.chdir({folder!r})
get_ipython().reset()
"""


def make_pages(notebooks: list[Path], folder: Path, parameters: dict) -> None:
    """Executes the notebooks with `parameters`; stores a copy and an HTML page of each in `folder` as it ends, and
    prints its name. One kernel executes several, so that torch and the like are imported only once or twice. Raises
    `UserError` where a cell fails; a kernel that is still whole executes the other notebooks."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = iter(notebooks)  # shared: the kernel that is free takes the next one
    count = min(KERNELS, torch.get_num_threads(), len(notebooks))
    with ThreadPoolExecutor(count) as pool:
        kernels = [pool.submit(_run_kernel, todo, folder, parameters) for _ in range(count)]
        try:
            for kernel in kernels:
                kernel.result()
        except KeyboardInterrupt:
            list(todo)  # no other notebook begins
            raise


def _run_kernel(todo: Iterator[Path], folder: Path, parameters: dict) -> None:
    """Executes notebooks of `todo` in one kernel, which has no settings of the user's, until none is left."""
    options = {"kernel_name": "python3", "record_timing": False, "shutdown_kernel": "immediate"}
    options |= {"extra_arguments": ["--log-level=CRITICAL"]}  # or the kernel tells of its sockets and its end
    client = NotebookClient(nbformat.v4.new_notebook(), **options)
    with TemporaryDirectory() as none, client.setup_kernel(env=os.environ | ENVIRONMENT | {"IPYTHONDIR": none}):
        for notebook in todo:
            _execute(client, notebook, folder / notebook.name, parameters)
            print(f"[{notebook.stem}]", flush=True)


def _execute(client: NotebookClient, notebook: Path, copy: Path, parameters: dict) -> None:
    """Executes a notebook in the client's kernel; stores its copy and its page."""
    reset = nbformat.v4.new_code_cell(RESET.format(folder=str(notebook.resolve().parent)))
    executed = parameterize_notebook(load_notebook_node(str(notebook)), parameters)
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    try:
        client.nb = nbformat.v4.new_notebook(cells=[reset])
        client.execute_cell(reset, 0, store_history=False)  # the notebook's first cell is number 1
        client.nb = executed
        client.reset_execution_trackers()
        for index, cell in enumerate(executed.cells):
            client.execute_cell(cell, index)
    except CellExecutionError as error:
        raise UserError(f"{notebook.name} fails with {error.ename}: {error.evalue}; {copy} has the cell") from error
    except DeadKernelError as error:
        raise UserError(f"{notebook.name} ends its kernel, perhaps for want of memory; {copy} has the cell") from error
    finally:
        write_bytes(copy, nbformat.writes(executed).encode())
    write_bytes(copy.with_suffix(".html"), to_page(executed).encode())


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Raises `UserError` if the notebook lacks one of `parameters`: papermill would only warn."""
    known = papermill.inspect_notebook(str(notebook))
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise UserError(f"{notebook.name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")


def to_page(notebook: nbformat.NotebookNode) -> str:
    """The HTML page of an executed notebook, which needs no internet: its formulas are MathML. The parameters are those
    that papermill injected, in place of the notebook's own."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    if ["injected-parameters"] in tags:
        notebook.cells.pop(tags.index(["parameters"]))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(\$\$?)(.+?)\1", _to_mathml, cell.source, flags=re.DOTALL)
    return HTMLExporter(mathjax_url="", require_js_url="").from_notebook_node(notebook)[0]


def _to_mathml(formula: re.Match) -> str:
    return convert(formula[2], display="block" if formula[1] == "$$" else "inline")


def shorten(path: Path) -> str:
    """`path` relative to the project, where it lies within."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
