"""The package's front door, and the machine check."""

import subprocess
import sys

import pytest

import gloss_utils
from gloss_utils.paths import check_choice
from gloss_utils.resources import describe_machine, package_versions


@pytest.mark.parametrize("name", gloss_utils.__all__)
def test_every_exported_name_is_there(name):
    assert callable(getattr(gloss_utils, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'recomender'"):
        _ = gloss_utils.recomender


def test_importing_the_package_does_not_load_torch():
    code = "import sys, gloss_utils, gloss_utils.course; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_far_from_all_is_refused_without_a_guess():
    with pytest.raises(ValueError, match=r"^unknown policy 'zzz': Known: rrf, score$"):
        check_choice("zzz", ["score", "rrf"], "policy")


def test_the_machine_check_speaks_of_what_the_course_needs():
    machine = describe_machine().set_index("what")
    assert machine.loc["Python", "enough"] and int(machine.loc["CPU cores", "found"]) >= 1
    versions = package_versions().set_index("package")["version"]
    assert versions["transformers"] != "not installed"
