"""Notebooks as executed copies and pages, on tiny ones: what each cell shows, what is refused, what stays."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from fomo.config import UserError
from fomo.pages import check_parameters, make_pages, to_page

LEAVES = """
import os
import matplotlib.pyplot as plt
plt.switch_backend("agg")  # which leaves figures open
figure, left = plt.figure(), os.getcwd()
os.chdir("/")
os.getpid()
"""
FINDS = """
import os
import matplotlib.pyplot as plt
len(plt.get_fignums()), "left" in globals(), os.path.basename(os.getcwd())
"""


def tagged(*tags):
    return {"tags": list(tags)}


@pytest.fixture
def write(tmp_path):
    """Writes a notebook, whose parameter is `SEED`, of cells with these sources."""

    def write(name, *sources):
        cells = [new_code_cell("SEED = 314159", metadata=tagged("parameters")), *map(new_code_cell, sources)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        path = tmp_path / "notebooks" / name
        path.parent.mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
        return path

    return write


@pytest.fixture
def one_core(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)


def shown(copy):
    """What the last cell of an executed copy shows, as text."""
    return nbformat.read(copy, as_version=4).cells[-1].outputs[-1].data["text/plain"]


# ---- executed


def test_notebooks_of_one_core_are_executed_in_turn_and_find_nothing_of_each_other(write, one_core, tmp_path, capfd):
    first, second = write("01_leaves.ipynb", LEAVES), write("02_finds.ipynb", FINDS)
    third = write("03_process.ipynb", "import os; os.getpid()")
    make_pages([first, second, third], tmp_path, {"SEED": 7})
    assert capfd.readouterr() == ("[01_leaves]\n[02_finds]\n[03_process]\n", "")
    assert shown(tmp_path / first.name) == shown(tmp_path / third.name)
    assert shown(tmp_path / second.name) == "(0, False, 'notebooks')"
    cells = nbformat.read(tmp_path / second.name, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [1, 2, 3]


def test_copy_and_page_have_the_given_parameters_and_figures(write, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = write("01_toy.ipynb", "import matplotlib.pyplot as plt", "plt.plot([1, SEED]);", "SEED")
    make_pages([notebook], tmp_path / "new" / "pages", {"SEED": 271828})
    copy = tmp_path / "new" / "pages" / "01_toy.ipynb"
    page = copy.with_suffix(".html").read_text()
    assert shown(copy) == "271828"
    assert "image/png" in nbformat.read(copy, as_version=4).cells[-2].outputs[0].data
    assert "data:image/png" in page
    assert "314159" not in page


def test_settings_of_the_user_are_not_asked(write, tmp_path, monkeypatch):
    """They could change a page; and where they cannot be written, IPython would warn."""
    startup = tmp_path / "settings" / "profile_default" / "startup" / "first.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("import os; os.environ['STARTED'] = 'yes'")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "settings"))
    notebook = write("01_toy.ipynb", "import os; 'STARTED' in os.environ")
    make_pages([notebook], tmp_path, {"SEED": 7})
    assert shown(tmp_path / notebook.name) == "False"


def test_cell_that_fails_is_in_the_copy_and_what_was_done_before_stays(write, one_core, tmp_path):
    done, failing = write("01_done.ipynb", "SEED"), write("02_failing.ipynb", "assert 1 > 2, 'what is wrong'", "SEED")
    with pytest.raises(UserError) as refused:
        make_pages([done, failing], tmp_path, {"SEED": 7})
    copy = tmp_path / "02_failing.ipynb"
    assert str(refused.value) == f"02_failing.ipynb fails with AssertionError: what is wrong; {copy} has the cell"
    *_, cell, after = nbformat.read(copy, as_version=4).cells
    assert cell.outputs[0].ename == "AssertionError"
    assert not after.outputs
    assert [path.name for path in sorted(tmp_path.glob("*.html"))] == ["01_done.html"]


def test_kernel_that_dies_is_an_error_and_the_other_one_goes_on(write, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    notebooks = [write("01_dying.ipynb", "import os; os._exit(1)"), *(write(f"0{n}_toy.ipynb", "SEED") for n in (2, 3))]
    with pytest.raises(UserError, match=r"01_dying.ipynb ends its kernel.*; .*01_dying.ipynb has the cell"):
        make_pages(notebooks, tmp_path, {"SEED": 7})
    assert [path.name for path in sorted(tmp_path.glob("*.html"))] == ["02_toy.html", "03_toy.html"]


def test_parameter_that_a_notebook_lacks_is_refused(write):
    notebook = write("01_toy.ipynb")
    check_parameters(notebook, {"SEED": 7})
    with pytest.raises(UserError, match=r"01_toy.ipynb has no parameter SED; it has SEED"):
        check_parameters(notebook, {"SED": 7})


# ---- pages


def test_page_has_its_formulas_as_mathml_the_given_parameters_once_and_no_script_from_elsewhere():
    cells = [
        new_markdown_cell("The loss $\\ell_2$ of $$\\frac{a}{b}$$ costs $n$ dollars."),
        new_code_cell("SEED = 314159  # as it stands", metadata=tagged("parameters")),
        new_code_cell("SEED = 271828", metadata=tagged("injected-parameters")),
        new_code_cell("price = '$1 and $2'"),
    ]
    page = to_page(new_notebook(cells=cells))
    assert page.count("<math") == 3
    assert page.count('display="block"') == 1
    assert "<mfrac>" in page
    assert "$1 and $2" in page
    assert "314159" not in page
    assert page.count("271828") == 1
    assert 'src="http' not in page


def test_page_of_a_notebook_that_was_given_nothing_has_its_own_parameters():
    cell = new_code_cell("SEED = 314159", metadata=tagged("parameters"))
    assert "314159" in to_page(new_notebook(cells=[cell]))
