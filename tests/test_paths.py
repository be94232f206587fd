"""Where artifacts live, and that half a file never lies under a final name."""

from pathlib import Path

import pytest

from gloss_utils import paths


def test_layout_of_a_dataset(tmp_path):
    beauty = paths.dataset_paths("beauty", tmp_path)
    assert beauty.root == tmp_path / "beauty"
    assert (
        beauty.queries("unsloth/Llama", "beam5", "test") == tmp_path / "beauty/queries/unsloth--Llama/beam5_test.json"
    )
    assert beauty.metrics("test", "lis__bm25") == tmp_path / "beauty/metrics/test/lis__bm25.parquet"


def test_a_directory_of_ones_own_is_its_own_root(tmp_path):
    own = paths.dataset_paths(str(tmp_path / "my_shop"), "elsewhere")
    assert own.root == tmp_path / "my_shop"
    assert own.dataset == "my_shop"


def test_relative_paths_count_from_the_project():
    assert paths.resolve("data") == paths.PROJECT_ROOT / "data"
    assert paths.show(paths.PROJECT_ROOT / "data" / "x") == str(Path("data/x"))


def test_show_hides_where_the_machine_keeps_things(tmp_path):
    assert paths.show(tmp_path / "secret" / "file.json") == "file.json"


def test_require_says_which_notebook_to_run(tmp_path):
    sample = paths.dataset_paths("sample", tmp_path)
    with pytest.raises(FileNotFoundError, match="run notebook 03 with DATASET=sample"):
        sample.require(sample.adapter("tiny-llama"), "adapter")
    assert sample.require(tmp_path, "adapter") == tmp_path


def test_every_artifact_that_is_required_has_a_notebook():
    assert set(paths.MADE_BY.values()) <= {f"{number:02d}" for number in range(9)}


def test_interrupted_write_leaves_the_old_file(tmp_path):
    target = paths.write_atomically(tmp_path / "a" / "file.txt", lambda path: path.write_text("old"))

    def die_half_way(path):
        path.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paths.write_atomically(target, die_half_way)
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target], "nothing half-made is left behind"


def test_a_directory_is_replaced_whole(tmp_path):
    def write(name):
        def fill(path):
            path.mkdir()
            (path / name).write_text(name)

        return fill

    paths.write_atomically(tmp_path / "splits", write("one"))
    paths.write_atomically(tmp_path / "splits", write("two"))
    assert [path.name for path in (tmp_path / "splits").iterdir()] == ["two"]
