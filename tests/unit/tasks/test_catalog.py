"""models.toml: what is read, and that every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.catalog import NAME, load_catalog
from tasks.errors import BadConfig

FAKE = '[[model]]\nname = "a"\nengine = "fake"\n'


def write(folder: Path, text: str) -> Path:
    """A models.toml in this folder."""
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refuse(path: Path, *parts: str) -> BadConfig:
    """Loading fails, and the message names the file and these parts."""
    with pytest.raises(BadConfig) as caught:
        load_catalog(path)
    for part in (str(path), *parts):
        assert part in caught.value.message
    return caught.value


def test_entries_keep_their_order_and_their_defaults(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, FAKE + '[[model]]\nname = "b"\nengine = "fake"\nmax_num_seqs = 4\n'))
    assert list(catalog.entries) == ["a", "b"]
    entry = catalog.get("b")
    assert entry is not None
    assert (entry.max_num_seqs, entry.replicas, entry.max_waiting, entry.max_model_len) == (4, 1, 1000, None)
    assert catalog.get("c") is None


def test_a_relative_folder_starts_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    catalog = load_catalog(write(tmp_path, '[[model]]\nname = "a"\npath = "weights"\n'))
    assert catalog.entries["a"].path == str(tmp_path / "weights")


def test_a_hub_id_stays_as_it_is(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, '[[model]]\nname = "a"\npath = "Qwen/Qwen3-0.6B"\n'))
    assert catalog.entries["a"].path == "Qwen/Qwen3-0.6B"


def test_an_unknown_key_is_named_with_the_known_ones(tmp_path: Path) -> None:
    error = refuse(write(tmp_path, FAKE + "max_num_seq = 3\n"), "model 1 (a)", "'max_num_seq'", "max_num_seqs")
    assert error.param == "max_num_seq"


@pytest.mark.parametrize(
    ("line", "param"),
    [("max_num_seqs = 0", "max_num_seqs"), ('replicas = "x"', "replicas"), ("max_waiting = -1", "max_waiting"),
     ("max_model_len = 1", "max_model_len"), ('gpus = "0"', "gpus"), ("gpus = [true, 'x']", "gpus.1"),
     ('quantization = "int4"', "quantization"), ("tensor_parallel_size = 2", "tensor_parallel_size")],
)  # fmt: skip
def test_a_bad_value_is_named(tmp_path: Path, line: str, param: str) -> None:
    assert refuse(write(tmp_path, f"{FAKE}{line}\n"), "model 1 (a)", param).param == param


def test_a_missing_name_is_named(tmp_path: Path) -> None:
    assert refuse(write(tmp_path, FAKE + '[[model]]\nengine = "fake"\n'), "model 2", "'name'").param == "name"


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c", "../x"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, path: str) -> None:
    file = write(tmp_path, f'[[model]]\nname = "a"\npath = "{path}"\n')
    assert refuse(file, "'path'", "no folder").param == "path"


def test_a_folder_beside_the_file_is_no_hub_id(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    refuse(write(tmp_path, '[[model]]\nname = "a"\npath = "models/typo"\n'), "no folder")


def test_a_model_needs_a_path_unless_it_is_fake(tmp_path: Path) -> None:
    assert refuse(write(tmp_path, '[[model]]\nname = "a"\n'), "'path'").param == "path"


def test_a_name_that_is_used_twice_is_named(tmp_path: Path) -> None:
    assert refuse(write(tmp_path, FAKE + FAKE), "'a' is used twice").param == "name"


@pytest.mark.parametrize("text", ["", "# nothing\n", 'model = "a"', "model = []", '[model]\nname = "a"'])
def test_no_model_table_is_an_error(tmp_path: Path, text: str) -> None:
    refuse(write(tmp_path, text), "[[model]]")


def test_a_model_that_is_no_table_is_an_error(tmp_path: Path) -> None:
    refuse(write(tmp_path, "model = [1]"), "model 1", "[[model]] table")


def test_an_unknown_top_level_key_is_named(tmp_path: Path) -> None:
    refuse(write(tmp_path, FAKE.replace("[[model]]", "[[models]]")), "'models'", "[[model]]")


def test_bad_toml_says_where(tmp_path: Path) -> None:
    refuse(write(tmp_path, "[[model]\n"), "line 1")


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    refuse(tmp_path / "none.toml", "PENSTOCK_MODELS")
    refuse(tmp_path)
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe")
    refuse(path)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a%b", "a'b", "a\n", "a@b", "é", "a" * 129])
def test_a_name_that_cannot_be_in_a_key_a_queue_and_a_url_is_refused(tmp_path: Path, name: str) -> None:
    assert not NAME.fullmatch(name)
    text = f'[[model]]\nname = "{name}"\nengine = "fake"\n'.replace("a\n", "a\\n", 1)
    assert refuse(write(tmp_path, text), "'name'").param == "name"
