"""The copy of a job's folder on another machine, and how its files come back."""

import os

import pytest

from lorada.experiments.queue.collect import (
    CALLER,
    COPY,
    File,
    changed_files,
    files_in,
    make_copy,
    token_of,
    write_files,
    write_sent,
)


def names(files):
    return [file.name for file in files]


def write_later(path, text):
    """Write a file that is newer than all others of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    newest = max(other.stat().st_mtime_ns for other in path.parents[1].rglob("*"))
    os.utime(path, ns=(newest + 1000, newest + 1000))


def test_files_are_sent_in_the_order_of_their_writing_without_checkpoints(tmp_path):
    token_of(tmp_path)
    for name in ("z.json", "a/weights", "checkpoint-5/weights", ".lorada.lock", "b.json"):
        write_later(tmp_path / "run" / name, "text")
    assert names(files_in(tmp_path / "run")) == ["z.json", "a/weights", "b.json"]


def test_a_folder_keeps_its_token(tmp_path):
    assert token_of(tmp_path) == token_of(tmp_path) == (tmp_path / CALLER).read_text()
    assert token_of(tmp_path / "other") != token_of(tmp_path)


def test_only_what_the_job_wrote_comes_back(tmp_path):
    copy = tmp_path / "copy"
    make_copy(copy, "token", [File("old.json", b"1"), File("again.json", b"1")])
    write_later(copy / "again.json", "2")
    write_later(copy / "deep/new.json", "3")
    assert changed_files(copy) == [File("again.json", b"2"), File("deep/new.json", b"3")]


def test_a_copy_is_kept_for_the_same_token_with_its_checkpoints(tmp_path):
    copy = tmp_path / "copy"
    make_copy(copy, "token", [File("old.json", b"1")])
    write_later(copy / "old.json", "22")
    write_later(copy / "checkpoint-5/weights", "")
    make_copy(copy, "token", [File("old.json", b"1")])
    assert (copy / "checkpoint-5/weights").is_file()
    assert changed_files(copy) == [File("old.json", b"22")]


def test_a_copy_of_an_earlier_job_is_removed(tmp_path):
    copy = tmp_path / "copy"
    make_copy(copy, "token", [File("old.json", b"1")])
    make_copy(copy, "another", [])
    assert names(files_in(copy)) == []
    assert (copy / COPY).is_file()


def test_a_folder_that_is_no_copy_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("text")
    with pytest.raises(ValueError, match=r"there is another .*: remove it there, or choose"):
        make_copy(tmp_path, "token", [])
    assert (tmp_path / "thesis.txt").read_text() == "text"


@pytest.mark.parametrize("name", ["../out", "/tmp/lorada-out", "a/../../out", "", "link/out"])
def test_no_name_leads_out_of_the_folder(name, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out of"):
        write_files(folder, [File("good", b""), File(name, b"")])
    assert [path.name for path in folder.iterdir()] == ["link"]


def test_a_new_subfolder_appears_whole_and_files_in_their_order(tmp_path, monkeypatch):
    seen = []
    rename = type(tmp_path).replace

    def watched(path, target):
        seen.append(target.relative_to(tmp_path).as_posix())
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", watched)
    (tmp_path / "known").mkdir()
    files = [File(name, b"x") for name in ("new/a", "z.json", "known/c", "new/deep/b", "a.json")]
    write_files(tmp_path, files)
    assert seen == ["z.json", "known/c", "new", "a.json"]
    assert sorted(names(files_in(tmp_path))) == sorted(names(files))


def test_a_file_that_a_job_reads_is_written_once_and_follows_a_change(tmp_path):
    path = tmp_path / "data/rows.jsonl"
    write_sent(path, b"1")
    first = path.stat().st_ino
    write_sent(path, b"1")
    assert path.stat().st_ino == first
    write_sent(path, b"2")
    assert path.read_bytes() == b"2"


def test_a_file_that_is_no_copy_is_not_overwritten(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"own")
    write_sent(path, b"own")
    with pytest.raises(ValueError, match=r"there is another .*rows\.jsonl: make them equal"):
        write_sent(path, b"other")
    assert path.read_bytes() == b"own"
