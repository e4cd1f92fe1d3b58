"""Every command and every Python block of README.md and docs/ runs, at small settings.

Programs run in this process (`tests.programs`). Blocks marked `text` show output.
Folders that documents name, such as /data/singlecoil_train, lie below a temporary one.
"""

import importlib
import pkgutil
import re
import shlex
import shutil

import h5py
import jax
import nibabel as nib
import numpy as np
import pytest

from kst_jax.config_dict import from_dict
from kst_jax.configs import demo
from kst_jax.models import registry
from kst_jax.programs import processes
from tests.conftest import AUTHORS_CHECKPOINT, ROOT
from tests.programs import PROGRAMS, Inline, run_here

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "weights" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
ABOUT = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
# Files that documents name and that are not there, but could be.
EXAMPLES = ("kst_jax/models/residual.py", "kst_jax/NAME/command.py", "studies/NAME/")
# Commands that do not run here, as patterns, and why.
NOT_RUN = {
    r"make demo": "its commands run, from the Makefile",
    r"make test": "it runs this test",
    r"python3? -m venv|pip install": "installs packages",
    r"gcloud |srun |  sbatch ": "need a TPU pod or Slurm",
    r" *kst-train .*--coordinator=": "needs others; tests/test_pods.py has two",
    r"export |for |done": "shell around the two before",
    r"kst-benchmark .*--(sweep|attention)=": "tests/test_benchmark.py sweeps",
    r"kst-study": "tests/test_study.py runs one",
    r"kst-reconstruct runs/knee": "tests/test_reconstruct.py writes such files",
    r"kst-train .*(measured|zero_shot)|kst-reconstruct runs/o": "tests/"
    "test_measured_masks.py writes such files",
    r"kst-reconstruct runs/radial": "tests/test_radial_reconstruction.py writes such "
    "files",
    r"kst-reconstruct sense": "tests/test_reconstruct_coils.py writes such files",
    r"\.venv-torch/bin/pip": "installs packages",
    r"\.venv/bin/python -m benchmarks": "needs PyTorch; tests/test_benchmarks.py",
    r"kst-(train|eval) .*coils\.count=": "tests/test_train_coils.py runs both",
    r"kst-eval .*brain\.h5": "needs a measured slice, which is not bundled",
    r"kst-download": "needs the network",
    r"find .*gunzip": "needs scans of their own",
    r"kst-release runs/brain_128|kst-eval .*runs/uncertainty": "needs cells of a study",
}
# Settings that a document's command is given as well, as far as its config has them.
SMALL = {
    "data.size": (16, 16),
    "model.width": 8,
    "model.heads": 2,
    "model.mlp": 8,
    "model.encoder_layers": 1,
    "model.lr_layers": 1,
    "model.hr_layers": 1,
    "model.lr_size": (8, 8),
    "model.refinement_features": 4,
    "model.refinement_layers": 1,
    "model.features": 4,
    "train.steps": 2,
    "train.warmup_steps": 0,
    # One program to compile for all runs, not three for each.
    "train.stages": (0.0, 0.0, 1.0),
    "train.learning_rate": 1e-3,
    "train.clip_norm": 0.0,
    "train.ema": 0.0,
    "train.batch_size": 4,
    "train.checkpoint_every": 2,
    "train.image_every": 0,
    "eval.batch_size": 4,
    "eval.figures": 0,
}
FEW_SLICES = {"data.slices": (0.4, 0.55)}  # of the bundled scans
# The same for what is no setting: what is replaced by what.
SHORT = {
    r"--validate_every=\d+|(?<=validate_every=)\d+": "2",
    r"(?<=config\.train\.steps = )\d+": "2",
    r"(?<=seconds=)\d+": "0.1",
    r"--sweep=\S+": "--sweep=16,24",
    r"--calls=\d+": "--calls=1",
}


def blocks(path):
    """Language and text of a document's fenced blocks."""
    found = re.findall(
        r"^```(\w*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL
    )
    return [block for block in found if block[0] not in ("text", "bibtex")]


def commands(text):
    """The commands of a block; one may go over several lines."""
    found, open_ = [], ""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        open_ = f"{open_}\n{line}" if open_ else line
        try:
            shlex.split(open_)
        except ValueError:  # a quotation goes on
            continue
        if open_.strip() and not open_.startswith("#"):
            found.append(open_)
        open_ = ""
    return found


def reasons(command):
    return [why for pattern, why in NOT_RUN.items() if re.match(pattern, command)]


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def place(tmp_path_factory, patch):
    """A folder with what documents name, and the runs of `make demo`."""
    place = tmp_path_factory.mktemp("documents")
    for name in ("train.py", "eval.py", "configs", "weights"):
        (place / name).symlink_to(ROOT / name)
    write_scans(place)
    patch.chdir(place)
    patch.setattr(processes, "pool", Inline)
    patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")  # benchmark turns it off
    patch.setattr(demo, "get_config", small(demo.get_config))
    patch.setattr(registry, "MODELS", dict(registry.MODELS))  # one is added
    cache = jax.config.jax_compilation_cache_dir
    for line in re.findall(r"^\t\$\(BIN\)/(python .*\.py .*)$", makefile(), re.M):
        run(line, place)
    yield place
    jax.config.update("jax_compilation_cache_dir", cache)


def makefile():
    return re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text())


def small(get_config):
    def changed():
        config = get_config()
        config.update_from_flattened_dict(present(config))
        config.data.slices = (0.4, 0.55)
        return config

    return changed


def present(config):
    """The SMALL settings that a config has."""
    return {
        name: value
        for name, value in SMALL.items()
        if name.partition(".")[2] in config[name.partition(".")[0]]
    }


def write_scans(place):
    rng = np.random.default_rng(0)
    for folder in ("data", "shared"):
        for part in ("singlecoil_train", "singlecoil_val"):
            path = place / folder / part
            path.mkdir(parents=True)
            for number in range(4 if part == "singlecoil_train" else 1):
                kspace = rng.normal(size=(9, 20, 18, 2)).astype(np.float32)
                kspace[:, 10, 9] = 100  # the doctor looks for a bright centre
                with h5py.File(path / f"file{len(part)}{number}.h5", "w") as file:
                    file["kspace"] = kspace.view(np.complex64)[..., 0]
    for folder in ("oasis", "scans", "other_scans"):
        (place / "data" / folder).mkdir()
        for number in range(4):
            volume = rng.uniform(50, 100, (32, 32, 32)).astype(np.float32)
            path = place / "data" / folder / f"{folder}{number}_T1w.nii.gz"
            nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    shutil.copy(AUTHORS_CHECKPOINT, place / "checkpoint.pth")
    mask = np.arange(256).reshape(1, 16, 16) < 256 // 5
    np.savez(place / "INPUT.npz", kspace=np.ones((1, 16, 16), complex), mask=mask)


def run(command, place, known=[]):  # noqa: B006 (kept from call to call)
    """Runs a command, small, unless it has run."""
    for pattern, replacement in SHORT.items():
        command = re.sub(pattern, replacement, command)
    command = re.sub(r"(?<=[ =,'])/(data|shared)/", f"{place}/\\1/", command)
    words = shlex.split(command, comments=True)
    if words in known:
        return
    known.append(words)
    program, *arguments = words
    if program == "python":
        if arguments[0] == "-c":
            exec(arguments[1], {})
            return
        program, *arguments = arguments[arguments[0] == "-m" :]
    else:
        assert program in PROGRAMS, f"{command}: no program of ours, nor in NOT_RUN"
    extra = [f"--config.{name}={value}" for name, value in small_values(arguments)]
    if program == "kst-benchmark":
        extra.append("--what=forward")
    for name, flag in (("convert", "--lr_size"), ("doctor", "--size")):
        if program == f"kst-{name}":
            extra += [flag, "16", "16"]
    # Not twice: a list that is given twice is joined.
    names = {flag.partition("=")[0] for flag in extra if "=" in flag}
    kept = [a for a in arguments if a.partition("=")[0] not in names]
    done = run_here(program, *kept, *extra, cwd=place)
    assert not done.returncode, f"{command}: {done.stderr[-2000:]}"


def small_values(arguments):
    """Settings that make a command's run small, by name."""
    named = [a for a in arguments if a.startswith("--config=")]
    if not named:
        return []
    if "=saved:" in named[0]:  # the network is what it is
        return FEW_SLICES.items() if ":weights" in named[0] else []
    name, _, setting = named[0].removeprefix("--config=").partition(":")
    module = importlib.import_module(f"kst_jax.configs.{name.replace('/', '.')}")
    config = module.get_config(*[setting] if setting else [])
    return (present(config) | (FEW_SLICES if name == "demo" else {})).items()


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_blocks_run(path, place, capsys):
    rng = np.random.default_rng(0)
    names = {
        "my_image": rng.random((64, 64)) + 0j,
        "my_kspace": rng.random((64, 64)) + 0j,
        "mask": rng.random((64, 64)) < 0.2,
    }
    variables = {}
    for language, text in blocks(path):
        if language == "python":
            for pattern, replacement in SHORT.items():
                text = re.sub(pattern, replacement, text)
            capsys.readouterr()
            exec(compile(text, path.name, "exec"), names)
            require_promised(text, capsys.readouterr().out)
            continue
        for command in commands(text):
            if assigned := re.fullmatch(r"(\w+)=\"(.*)\"", command, re.DOTALL):
                variables[assigned[1]] = " ".join(assigned[2].split())
                continue
            for name, value in variables.items():
                command = command.replace(f"${name}", value)
            if not reasons(command):
                run(command, place)
    if "get_config" in names:
        from_dict(names["get_config"]())


def require_promised(text, output):
    """What a comment after `print(...)` promises, in numbers, is printed."""
    for promised in re.findall(r"print\(.*\)  # ([\d(][^a-z]*)$", text, re.MULTILINE):
        assert promised.replace(",", "") in output.replace(",", "")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_command_stands_outside_of_a_block(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    assert not re.search(r"^ +(python|kst-\w+|make|pip) ", text, re.M)


@pytest.mark.parametrize("path", [*DOCUMENTS, *ABOUT], ids=lambda path: path.name)
def test_files_and_modules_that_a_document_names_exist(path):
    rooms = "benchmarks|kst_jax|configs|docs|notebooks|studies|tests|weights"
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    for name in re.findall(rf"`((?:{rooms})/[\w./]+)", text):
        assert name in EXAMPLES or (ROOT / name).exists(), name
    for name in re.findall(r"`(kst_jax(?:\.\w+)+)", text):
        pkgutil.resolve_name(name)


def test_what_does_not_run_is_still_there():
    every = [
        re.sub(r"\$RUN", "", command)
        for path in DOCUMENTS
        for language, text in blocks(path)
        if language != "python"
        for command in commands(text)
    ]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in every), pattern


def test_scores_in_the_study_are_those_of_its_tables():
    tables = "".join(x.read_text() for x in (ROOT / "studies").glob("*/tables.md"))
    lines = (ROOT / "docs" / "study.md").read_text().splitlines()
    scores = [
        score
        for line in lines
        if not line.startswith("| BART")  # no cell of a study
        for score in re.findall(r"\d+\.\d+ \+- \d+\.\d+", line)
    ]
    assert scores
    assert [score for score in scores if score not in tables] == []
