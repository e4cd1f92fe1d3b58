"""The notebook runs from top to bottom; of what it shows, git holds pictures alone."""

import base64
import copy

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
    "model.refinement_layers": 1,
    "data.size": (16, 16),
    "data.slices": (0.45, 0.5),
    "train.steps": 4,
    "train.warmup_steps": 0,
    "train.stages": (0.0, 0.0, 1.0),  # one program to compile
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


def once_more(notebook, network):
    """Adds what the notebook does with a network to its end: with another network."""
    ids = [cell.id for cell in notebook.cells]
    again = [
        copy.deepcopy(cell)
        for cell in notebook.cells[ids.index("load") :]
        if cell.cell_type == "code"
    ]
    again[0].source = f"NETWORK = {network!r}\n{again[0].source}"
    for cell in again:
        cell.id += "-again"
    notebook.cells += again


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    run = tmp_path / "run"
    once_more(with_parameters(notebook, SETTINGS=TINY, WORKDIR=str(run)), network="")
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(PATH.parent)}},
    ).execute()
    shown = {
        cell.id: "".join(kind for out in cell.outputs for kind in out.get("data", {}))
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    with_network = ("fig2", "fig3", "fig4", "own")
    again = (f"{name}-again" for name in with_network)
    for name in ("spectrum", "tokens", "train", *with_network, *again):
        assert "image/png" in shown[name], name
    said = {c.id: str(c.get("outputs")) for c in notebook.cells}
    assert "weights/uniform1d_5x, step" in said["load"]
    assert f"{run}, step 4" in said["load-again"]
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
