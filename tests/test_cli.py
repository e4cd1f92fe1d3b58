"""Command lines: what every program answers to mistakes, --help and signals."""

import os
import re
import signal
import subprocess
import sys
import warnings

import jax
import pytest

from kst_jax.config_dict import require_key
from kst_jax.programs import cli, config_arguments
from tests.conftest import ROOT
from tests.programs import TINY, refused, run_apart, run_here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--config.train.stepz=3"], "valid keys: accumulate, batch_size"),
        (["--config.data.train=/no-where"], "/no-where: no such file"),
        (["--config.mask.acceleration=0.5"], "above 1"),
        (["--config.data.pad=False"], "smaller than the crop"),
        (["--config.data.test=demo:train"], "sub-0017"),
        (["--config.model.heads=0"], "model.heads=0"),
        (["--config.model.widht=8"], 'Did you mean "width"'),
        (["--config.mask.kind=rosette"], "one of gaussian_2d, uniform_1d"),
        (["surplus"], "'surplus' is not an option"),
        (["--num-processes=2", "--process_id=0"], "belong together"),
        (["--config.train.batch-size=0"], "train.batch_size=0"),
        (["--coordinator=here"], "HOST:PORT"),
    ],
)
def test_mistakes_get_one_message(change, message, tmp_path):
    error = refused("train.py", *TINY, f"--workdir={tmp_path / 'x'}", *change)
    assert message in error
    assert not (tmp_path / "x" / "checkpoints" / "4").exists()


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3://x", "file:///tmp/x"])
def test_folders_elsewhere_are_refused_at_the_start(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = f"--workdir={url}"
    for program, *arguments in (
        ("kst-train", *TINY, workdir),
        ("kst-eval", *TINY, workdir),
        ("kst-study", "--config=studies/small", workdir),
        ("kst-benchmark", *TINY, workdir),
        ("kst-export", url, "out"),
        ("kst-export", "run", url),
        ("kst-release", url, "out"),
        ("kst-release", "run", url),
        ("kst-convert", "a.pth", url),
        ("kst-reconstruct", "run", "scans", url),
    ):
        done = run_here(program, *arguments, cwd=tmp_path)
        assert done.returncode == 1, program
        assert f"error: {url}: runs and results need a folder" in done.stderr, program
        assert not list(tmp_path.iterdir()), program


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "gpu", "tpu", "nonsense"])
def test_a_platform_without_a_device_is_told(platform, tmp_path):
    done = run_apart(
        "train.py",
        *TINY,
        f"--workdir={tmp_path}",
        env=os.environ | {"JAX_PLATFORMS": platform},
    )
    assert done.returncode == 1
    (line,) = (s for s in done.stderr.splitlines() if s.startswith("error"))
    assert f"JAX_PLATFORMS={platform}: JAX finds no such device" in line
    assert "set JAX_PLATFORMS=cpu" in line
    assert "Traceback" not in done.stderr


def test_programs_compute_in_float32_whatever_jax_is_told(monkeypatch):
    found = []
    monkeypatch.setattr(sys, "argv", ["program"])
    before = signal.getsignal(signal.SIGTERM)
    jax.config.update("jax_enable_x64", True)
    try:
        cli.run(lambda: found.append(jax.numpy.zeros(()).dtype))
    finally:
        signal.signal(signal.SIGTERM, before)
        jax.config.update("jax_enable_x64", False)
    assert found == [jax.numpy.float32]


def test_warnings_as_errors_do_not_concern_how_a_config_is_loaded():
    with warnings.catch_warnings(action="error"):
        config = config_arguments._load("demo", [])
    assert config.data.train == "demo:train"


def test_missing_flags_and_configs(tmp_path):
    assert "--workdir is missing" in refused("train.py", "--config=demo")
    workdir = f"--workdir={tmp_path}"
    assert "--config is missing" in refused("train.py", workdir)
    assert "is it demo?" in refused("train.py", workdir, "--config=configs/dmeo.py")
    assert "oasis" in refused("train.py", workdir, "--config=paper:x")
    assert "oasis" in refused("train.py", workdir, "--config=paper")
    refused("train.py", "--config=configs/demo.py", "--workdir=/proc/none")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def get_config(:", "line 1: SyntaxError"),
        ("import nowhere", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config():\n    return {}['SCANS']", "line 2: KeyError: SCANS"),
        (
            "from configs import demo\n\n\ndef get_config():\n"
            "    config = demo.get_config()\n    config.train.steps = 'many'",
            "line 6: TypeError: Could not override field 'steps'",
        ),
        (
            "from configs import demo\n\n\ndef get_config():\n"
            "    return demo.get_config().train.stepz",
            "line 5: AttributeError: 'stepz' Did you mean",
        ),
    ],
)
def test_a_config_file_that_fails_is_told_with_its_line(text, told, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(text)
    workdir = f"--workdir={tmp_path}"
    assert f"{config}" in (error := refused("train.py", workdir, f"--config={config}"))
    assert told in error
    assert "Traceback" not in error


def test_a_config_file_without_its_function(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1")
    config = f"--config={tmp_path / 'mine.py'}"
    # Apart: ml_collections keeps what an earlier file has defined.
    done = run_apart("train.py", f"--workdir={tmp_path}", config)
    assert done.returncode == 1
    assert done.stderr == f"error: {config}: has no function get_config\n"


def test_a_folder_below_ones_own(tmp_path, monkeypatch):
    """The shell leaves `~` as it is behind a `=`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    error = refused("eval.py", *TINY, "--workdir=~/runs/none")
    assert f"{tmp_path}/runs/none" in error


def test_debug_shows_a_traceback(tmp_path):
    done = run_apart("eval.py", *TINY, f"--workdir={tmp_path}", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


# Every program by how it is started here; its help shows how users do.
PROGRAMS = {
    str(path.relative_to(ROOT)): f"kst-{path.parent.name}"
    for path in ROOT.glob("kst_jax/*/__main__.py")
} | {
    "train.py": "kst-train",
    "eval.py": "kst-eval",
    "kst_jax/data/download.py": "kst-download",
    # An export's reconstruct.py is a copy.
    "kst_jax/export/standalone.py": "python reconstruct.py",
}


def test_every_program_is_known():
    every = (*ROOT.glob("*.py"), *ROOT.glob("kst_jax/**/*.py"))
    started = {
        str(path.relative_to(ROOT))
        for path in every
        if '__name__ == "__main__"' in path.read_text()
    }
    assert started == set(PROGRAMS)


def start_of(path):
    if "/" not in path or path.endswith("standalone.py"):
        return path
    return path.removesuffix("/__main__.py").removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize("path", PROGRAMS)
def test_help_explains(path):
    """With an example, no flag or setting that does not exist, and none of absl's."""
    done = run_here(start_of(path), "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"    {PROGRAMS[path]} " in done.stdout
    listed = set(re.findall(r"^  (?:-h, )?--(\w+)", done.stdout, re.MULTILINE))
    named = set(re.findall(r"--([\w.]*\w)", done.stdout))
    settings = {name for name in named if name.startswith("config.")}
    for setting in settings - {"config.section.key"}:
        require_key(setting.removeprefix("config."))
    assert named - settings <= listed | {"config", "workdir"}
    assert not listed & {"verbosity", "logtostderr", "jax_platforms"}


def test_a_program_that_is_terminated_tidies_up(tmp_path):
    program = f"""
import pathlib, time
from kst_jax.programs import cli, files
def main():
    with files.together(pathlib.Path({str(tmp_path)!r})) as folder:
        (folder / "half").touch()
        print("begun", flush=True)
        time.sleep(60)
cli.run(main)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        assert list(tmp_path.rglob("half"))
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cause", ["RESOURCE_EXHAUSTED: Out of memory", "INTERNAL: x"])
def test_lack_of_device_memory_is_told(cause, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program"])

    def main():
        raise jax.errors.JaxRuntimeError(cause)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises((SystemExit, jax.errors.JaxRuntimeError)) as ended:
            cli.run(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr().err
    assert isinstance(ended.value, SystemExit) == ("less memory" in told)
    assert ("less memory" in told) == cause.startswith("RESOURCE")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    program = [sys.executable, "-m", "kst_jax.doctor", "demo:train", "demo:test"]
    doctor = subprocess.Popen(
        program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    doctor.stdout.close()
    assert b"rror" not in doctor.communicate()[1]
    assert doctor.returncode == 141
