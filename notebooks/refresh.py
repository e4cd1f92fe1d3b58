"""Runs the notebook and stores its pictures in it, for readers of the repository.

    python notebooks/refresh.py

Text that cells print is left out, and so are numbers of executions: they would differ
from run to run. Pictures are stored with 64 colours.
"""

import argparse
import base64
import io
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

PATH = Path(__file__).with_name("kst_colab.ipynb")


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    notebook = nbformat.read(PATH, as_version=4)
    with tempfile.TemporaryDirectory() as run:
        (cell,) = (
            c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())
        )
        given = cell.source
        cell.source += f"\nWORKDIR = {run!r}"
        where = {"metadata": {"path": str(PATH.parent)}}
        NotebookClient(notebook, timeout=None, resources=where).execute()
        cell.source = given
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                picture(out.data["image/png"])
                for out in cell.outputs
                if "image/png" in out.get("data", ())
            ]
            cell.execution_count = None
    nbformat.write(notebook, PATH)


def picture(png: str) -> nbformat.NotebookNode:
    """An output cell with the picture alone, from base64 to base64."""
    small = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image = image.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(small, "png", optimize=True)
    data = {"image/png": base64.b64encode(small.getvalue()).decode()}
    return nbformat.v4.new_output("display_data", data)


if __name__ == "__main__":
    main()
