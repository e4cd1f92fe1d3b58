"""The notebook runs from top to bottom; of what it shows, git holds pictures alone."""

import base64

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

PATH = ROOT / "notebooks" / "kst_colab.ipynb"
TINY = {
    "model.width": 8,
    "model.heads": 2,
    "model.mlp": 8,
    "model.encoder_layers": 1,
    "model.lr_layers": 1,
    "model.hr_layers": 1,
    "model.lr_size": (8, 8),
    "model.refinement_features": 4,
    "data.size": (16, 16),
    "data.slices": (0.45, 0.5),
    "train.steps": 4,
    "train.warmup_steps": 0,
    "train.log_every": 1,
    "train.image_every": 0,
    "eval.batch_size": 2,
}


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def with_parameters(notebook, **values):
    """The notebook with other values assigned at the end of its parameters' cell."""
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for name, value in values.items():
        assert f"\n{name} = " in f"\n{cell.source}"
        cell.source += f"\n{name} = {value!r}"
    return notebook


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Where it trains, once: the next time it finds the run finished."""
    return tmp_path_factory.mktemp("notebook") / "run"


@pytest.mark.slow
@pytest.mark.parametrize("network", ["weights/uniform1d_5x", ""])
def test_it_runs_from_top_to_bottom(network, notebook, run, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    NotebookClient(
        with_parameters(notebook, SETTINGS=TINY, WORKDIR=str(run), NETWORK=network),
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(PATH.parent)}},
    ).execute()
    shown = {
        cell.id: "".join(kind for out in cell.outputs for kind in out.get("data", {}))
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    for name in ("spectrum", "tokens", "train", "fig2", "fig3", "fig4", "own"):
        assert "image/png" in shown[name], name
    assert (run / "checkpoints" / "4").is_dir()
    assert (run / "example.h5").is_file()


def test_git_holds_its_pictures_alone(notebook):
    size = 0
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            assert set(out.get("data", ())) == {"image/png"}, cell.id
            size += len(base64.b64decode(out.data["image/png"]))
        assert cell.get("execution_count") is None
    assert 0 < size < 400_000
