"""Every notebook runs from its first cell to its last, as published and with predictions
filled in, and draws. Its own assertions hold what its text says."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import moe

pytest.importorskip("matplotlib")

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.py"))
PREDICTION = re.compile(r"^(prediction\w*) = None  # .+, e\.g\. (.+)$", re.MULTILINE)

# Runs in a process of its own, twice: with the reader's predictions left out, and made.
RUN = """
import sys, warnings
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
warnings.simplefilter("error", UserWarning)  # a legend without entries, labels cut off
warnings.simplefilter("error", RuntimeWarning)  # a division by zero
path = sys.argv[1]
for source in sys.stdin.read().split(chr(0)):
    exec(compile(source, path, "exec"), {"__name__": "__main__"})
    for figure in map(plt.figure, plt.get_fignums()):
        if not any(axes.has_data() for axes in figure.axes):
            sys.exit(f"{path}: picture {figure.number} is empty")
        figure.canvas.draw()
    print("pictures:", len(plt.get_fignums()))
    plt.close("all")
"""


def run(source, path="notebook"):
    """@return how many pictures it drew, without predictions and with them"""
    filled_in, count = PREDICTION.subn(r"\1 = \2", source)
    assert count > 0, "no prediction is asked for"
    *_, last = PREDICTION.finditer(source)
    assert "plt.show()" in source[last.end():], "nothing is drawn after a prediction"
    paths = [str(FOLDER), str(pathlib.Path(moe.__file__).parents[1])]
    done = subprocess.run([sys.executable, "-c", RUN, str(path)], text=True,
                          input=source + "\0" + filled_in, capture_output=True,
                          env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)),
                          timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(n) for n in re.findall(r"^pictures: (\d+)$", done.stdout, re.MULTILINE)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_draws(path):
    drawn = run(path.read_text(), path)
    assert len(drawn) == 2 and min(drawn) > 0


def test_takes_your_own_checkpoint():
    """A model of another family than the one that the notebook writes."""
    path = FOLDER / "08_your_own_checkpoint.py"
    yours = FOLDER.parent / "tests" / "checkpoints" / "gpt_oss"
    source, count = re.subn(r"^DIR = None", f"DIR = {str(yours)!r}", path.read_text(),
                            flags=re.MULTILINE)
    assert count == 1 and min(run(source, path)) > 0


def test_all_eight_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02d}" for n in range(1, 9)]
    listed = (FOLDER / "README.md").read_text()
    assert all(path.name in listed for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_those_of_jupytext(path):
    """What jupytext needs: a header, and cells with a marker that are not empty."""
    lines = path.read_text().splitlines()
    assert lines[0] == "# ---" and "format_name: percent" in path.read_text()
    assert max(map(len, lines)) <= 90 and len(lines) <= 220
    cells = path.read_text().split("\n# %%")[1:]
    assert len(cells) >= 8
    for cell in cells:
        assert cell.startswith((" [markdown]\n", "\n")) and cell.split("\n", 1)[1].strip()
        if cell.startswith(" [markdown]"):
            assert all(not line or line.startswith("#") for line in cell.split("\n")[1:])


def test_a_notebook_that_draws_nothing_fails():
    source = ("prediction = None  # any, e.g. 1\nimport matplotlib.pyplot as plt\n"
              "plt.show()\n")
    assert run(source) == [0, 0]
    with pytest.raises(AssertionError, match="is empty"):
        run(source.replace("plt.show", "plt.subplots(); plt.show"))
    with pytest.raises(AssertionError, match="line 4"):
        run(source + "assert prediction is None\n")
