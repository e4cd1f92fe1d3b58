"""JSON files of results that another command must not overwrite."""

import pytest

from kst_jax import files
from kst_jax.errors import InputError


def test_a_file_of_the_same_things_is_no_obstacle(tmp_path):
    path = tmp_path / "results.json"
    files.require_same_json(path, "cases", (1, 2), "other results")
    files.require_same_json(tmp_path / "none" / "x", "cases", (1, 2), "other results")
    path.write_text('{"cases": [1, 2]}')
    files.require_same_json(path, "cases", (1, 2), "other results")


@pytest.mark.parametrize("text", ['{"cases": [1]}', "{}", "[1, 2]", '"x"', "{", ""])
def test_a_file_of_others_or_a_damaged_one_is_left_alone(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match="other results"):
        files.require_same_json(path, "cases", (1, 2), "other results")
    assert path.read_text() == text
