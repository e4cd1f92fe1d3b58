"""The package as installed from its source distribution, in an empty folder."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from kst_jax.data import finding
from tests.conftest import ROOT
from tests.programs import PROGRAMS, TINY

pytestmark = pytest.mark.slow

# All that a build may need.
FOLDERS = ["configs", "kst_jax"]
FILES = ["LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "requirements.txt"]
# Of the network, what compiles fast.
SMALL = [
    *TINY[1:],
    "--config.model.lr_decoder=False",
    "--config.model.refinement=False",
    "--config.train.steps=2",
    "--config.train.stages=(0,0,1)",
]
MINE = """
from kst_jax.configs import demo

def get_config():
    config = demo.get_config()
    config.train.seed = 7
    return config
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the source distribution, so that this holds all it takes."""
    folder = tmp_path_factory.mktemp("sources")
    for name in FOLDERS:  # copied, since a build leaves folders beside its sources
        shutil.copytree(ROOT / name, folder / name)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir=dist", "."],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory):
    """An empty folder beside an environment with the package and what it needs."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "environment"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", environment], check=True
    )
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python"]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True
    )
    # Other packages are those of this environment, without its editable ones.
    (packages,) = environment.glob("lib/python*/site-packages")
    others = pathlib.Path(jax.__file__).parents[1]
    (packages / "others.pth").write_text(f"{others}\n")
    place = folder / "empty"
    place.mkdir()
    return place


def run(place, program, *arguments):
    """What an installed program does in the empty folder."""
    return subprocess.run(
        [place.parent / "environment" / "bin" / program, *map(str, arguments)],
        cwd=place,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )


def done(place, program, *arguments):
    """What a program prints that must succeed."""
    ended = run(place, program, *arguments)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.fixture(scope="module")
def trained(place):
    done(place, "kst-train", "--config=demo", *SMALL, "--workdir=runs/demo")
    return place


def test_every_module_is_the_installed_one(place):
    program = f"""
import importlib
from kst_jax.data import finding
for name in {sorted(PROGRAMS.values())}:
    print(importlib.import_module(name).__file__)
import kst_jax.configs, kst_jax.configs.studies
print(kst_jax.configs.__file__, kst_jax.configs.studies.__file__, sep="\\n")
print(*finding.DEMO.values(), sep="\\n")
"""
    paths = done(place, "python", "-c", program).splitlines()
    assert len(paths) == len(PROGRAMS) + 2 + len(finding.DEMO)
    for path in paths:
        assert pathlib.Path(path).is_relative_to(place.parent / "environment")
        assert pathlib.Path(path).is_file()


def test_every_config_of_the_clone_is_installed(place):
    (installed,) = place.parent.glob("environment/lib/*/site-packages/kst_jax/configs")
    wanted = {p.relative_to(ROOT / "configs") for p in ROOT.glob("configs/**/*.py")}
    assert wanted == {p.relative_to(installed) for p in installed.rglob("*.py")}


def test_a_run_is_evaluated_exported_and_released(trained):
    run_ = ["--config=demo", *SMALL, "--workdir=runs/demo"]
    assert "zero-filled" in done(trained, "kst-eval", *run_)
    assert (trained / "runs/demo/eval/metrics.json").is_file()
    done(trained, "kst-export", "runs/demo", "exported", "--platforms", "cpu")
    assert "INPUT.npz" in done(trained, "python", "exported/reconstruct.py", "--help")
    done(trained, "kst-release", "runs/demo", "released", "--test=demo:test")
    saved = ["--config=saved:released", "--workdir=released"]
    saved.append("--config.data.slices=(0.4,0.55)")
    assert "zero-filled" in done(trained, "kst-eval", *saved, "--config.eval.out=again")


def test_a_config_of_ones_own(place):
    (place / "mine.py").write_text(MINE)
    done(place, "kst-train", "--config=mine.py", *SMALL, "--workdir=runs/mine")
    assert '"seed": 7' in (place / "runs/mine/config.json").read_text()


def test_the_benchmark(place):
    few = ["--what=forward", "--calls=1", "--workdir=bench", "--config=demo"]
    assert "forward" in done(place, "kst-benchmark", *few, *SMALL)


def test_the_doctor(place):
    assert "1 scans of 1 people" in run(place, "kst-doctor", "demo:train").stdout


MISTAKES = {
    "kst-train --config=dmeo --workdir=x": "is it demo?",
    "kst-study --config=studies/smal --workdir=x": "is it studies/small?",
    "kst-study --config=studies/small --workdir=x": "colin27_t1w.nii.gz",
    "kst-convert none.pth converted": "none.pth",
    "kst-eval --config=demo --workdir=none": "none",
}
# Runs installed programs one after another, since a start takes seconds.
IN_TURN = """
import contextlib, io, json, pathlib, runpy, sys

found = {}
for command in json.loads(sys.argv[1]):
    program, *sys.argv[1:] = command.split()
    sys.argv[0] = str(pathlib.Path(sys.executable).parent / program)
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code
    found[command] = code, stderr.getvalue()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers(place):
    """Exit codes and messages of MISTAKES."""
    ended = run(place, "python", "-c", IN_TURN, json.dumps([*MISTAKES]))
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes_are_told_in_one_line(command, answers):
    code, said = answers[command]
    assert code == 1
    assert MISTAKES[command] in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
