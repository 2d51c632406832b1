"""`make report`: all stages with progress bars, then the notebooks on what is stored, as executed copies and pages."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import papermill
from latex2mathml.converter import convert
from nbconvert import HTMLExporter

from fomo.artifacts import Run
from fomo.config import ROOT, UserError
from fomo.stages.ensemble import train_members
from fomo.stages.evaluation import evaluate
from fomo.stages.final import compose
from fomo.stages.finetuning import finetune, finetune_best, optimize_finetuning
from fomo.stages.head_search import extract_features, search_head, train_head, tune_head
from fomo.stages.preprocessing import preprocess
from fomo.storage import write_bytes

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
STAGES = (
    preprocess,
    finetune,
    optimize_finetuning,
    finetune_best,
    extract_features,
    search_head,
    tune_head,
    train_head,
    train_members,
    compose,
    evaluate,
)


def report(run: Run, parameters: dict) -> str:
    """Computes what is not yet stored, executes the notebooks with `parameters`; returns the closing line."""
    start = time.perf_counter()
    for notebook in NOTEBOOKS:
        check_parameters(notebook, parameters)
    for number, stage in enumerate(STAGES, start=1):
        begun = time.perf_counter()
        result = stage(run)
        print(f"[{number}/{len(STAGES)}] {stage.__name__:20} {time.perf_counter() - begun:6.1f} s", flush=True)
    for note in preprocess(run).notes:
        print(f"note: {note}")
    os.environ |= {"TQDM_DISABLE": "1", "FOMO_FRESH": "0"}  # for the kernels: everything is stored by now
    folder = run.folder / "notebooks"
    with ThreadPoolExecutor(2) as pool:  # they start in order, two at a time: most of their time is a core's
        pages = [pool.submit(execute, notebook, folder, parameters) for notebook in NOTEBOOKS]
        for notebook, page in zip(NOTEBOOKS, pages, strict=True):
            page.result()
            print(f"[{notebook.stem[:2]}/{len(NOTEBOOKS):02}] {notebook.stem[3:]}", flush=True)
    metrics = result.metrics[result.metrics["model"] == "final"].set_index("metric")
    measured = ", ".join(
        f"{name} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        for name, row in metrics.loc[["macro F1", "macro precision", "accuracy"]].iterrows()
    )
    return (
        f"{run.config.dataset}: {measured} on {len(result.predictions)} {result.split} images (95% intervals), in "
        f"{(time.perf_counter() - start) / 60:.1f} minutes | figures: {shorten(run.figures)} | model: "
        f"{shorten(result.model_path)} | pages: {shorten(run.folder / 'notebooks')}"
    )


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Raises `UserError` if the notebook lacks one of `parameters`: papermill would only warn."""
    known = papermill.inspect_notebook(str(notebook))
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise UserError(f"{notebook.name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")


def execute(notebook: Path, folder: Path, parameters: dict) -> None:
    """Executes a notebook with `parameters`; stores the copy and its HTML page in `folder`. Raises `UserError` where
    one of its cells fails."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / notebook.name
    options = {"cwd": str(notebook.parent), "kernel_name": "python3", "progress_bar": False}
    options |= {"extra_arguments": ["--log-level=CRITICAL"]}  # or the kernel tells of its sockets and its end
    try:
        papermill.execute_notebook(str(notebook), str(copy), parameters, **options)
    except papermill.PapermillExecutionError as error:
        raise UserError(f"{notebook.name} fails with {error.ename}: {error.evalue}; {copy} has the cell") from error
    write_bytes(copy.with_suffix(".html"), to_page(nbformat.read(copy, as_version=4)).encode())


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
