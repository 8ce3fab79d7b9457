"""Artifacts: a write is whole or absent, one process writes at a time, and a manifest says what a folder is."""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from lm_retrieval.artifacts import (
    FORMAT_VERSION,
    atomic_file,
    folder_bytes,
    folder_lock,
    read_manifest,
    replace_folder,
    sha256_bytes,
    sha256_file,
    storage_errors,
    write_json,
    write_manifest,
)
from lm_retrieval.errors import CheckpointError, IndexFormatError, StorageError
from lm_retrieval.version import __version__

HOLD_LOCK = (
    "import sys; from pathlib import Path; from lm_retrieval.artifacts import folder_lock\n"
    "with folder_lock(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
)
TRY_LOCK = (
    "import sys; from pathlib import Path; from lm_retrieval.artifacts import folder_lock\n"
    "from lm_retrieval.errors import StorageError\n"
    "try:\n"
    "    with folder_lock(Path(sys.argv[1])): print('locked')\n"
    "except StorageError as error: print(error)"
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- atomic_file


def test_file_appears_whole_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "folder" / "a.txt"
    with atomic_file(path) as stream:
        stream.write("zwei ü\n")
        assert not path.exists()
    assert path.read_bytes() == "zwei ü\n".encode()
    assert names(path.parent) == ["a.txt"]


def test_binary_mode_writes_the_bytes(tmp_path):
    with atomic_file(tmp_path / "a.bin", "wb") as stream:
        stream.write(b"\r\n\0\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\r\n\0\xff"


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_old_content_stays_when_the_block_raises(tmp_path, error):
    def write_half() -> None:
        with atomic_file(path) as stream:
            stream.write("half of the n")
            stream.flush()
            raise error

    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_new_content_replaces_the_old(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old and longer")
    with atomic_file(path) as stream:
        stream.write("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_mode_follows_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", {})
        after = os.umask(mask)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == mode
    assert after == mask


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full; free some space and run the same command again"),
        (errno.EDQUOT, "the disk quota is used up; free some space"),
        (errno.EIO, "input/output error; check the disk"),
    ],
)
def test_failing_disk_keeps_the_old_file_and_gives_advice(tmp_path, monkeypatch, number, advice):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=re.escape(f"{path}: ") + ".*" + re.escape(advice)):
        with atomic_file(path) as stream:
            stream.write("new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "no permission; choose another folder or change its permissions"),
        (errno.EPERM, "not permitted; choose another folder"),
        (errno.EROFS, "the file system is read-only; choose another folder"),
    ],
)
def test_folder_that_cannot_be_written_gives_advice(tmp_path, monkeypatch, number, advice):
    def fail(prefix, dir):
        raise OSError(number, os.strerror(number), f"{dir}/{prefix}k3j2")

    monkeypatch.setattr("tempfile.mkstemp", fail)
    with pytest.raises(StorageError, match=re.escape(advice)) as caught:
        with atomic_file(tmp_path / "a.txt"):
            pytest.fail("the block must not run")
    assert str(tmp_path) in str(caught.value)


def test_full_device_gives_advice(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(StorageError, match=re.escape(f"{tmp_path}: the disk is full; free some space")):
            with storage_errors(tmp_path):
                os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def test_target_that_is_a_folder_is_named_not_the_temporary_file(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(StorageError, match=re.escape(f"{target}: this is a folder, a file is needed")):
        with atomic_file(target) as stream:
            stream.write("x")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("inner", ["a.json", "sub/a.json"])
def test_file_in_the_place_of_a_folder_is_named_with_advice(tmp_path, inner):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"a folder is needed") as caught:
        write_json(tmp_path / "file" / inner, {})
    assert str(tmp_path / "file") in str(caught.value)


def test_storage_error_names_the_file_the_system_complained_about(tmp_path):
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path / 'none'}: no such file or folder; check the path")):
        with storage_errors(tmp_path):
            (tmp_path / "none").read_bytes()


# ---------------------------------------------------------------- folders


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_text(content)
    return path


def test_folder_is_replaced_whole(tmp_path):
    target = folder(tmp_path / "index", a="old a", b="old b")
    replace_folder(folder(tmp_path / "new", a="new a", c="new c"), target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "new a", "c": "new c"}
    assert names(tmp_path) == ["index"]


def test_folder_moves_where_nothing_was(tmp_path):
    replace_folder(folder(tmp_path / "new", a="new"), tmp_path / "index")
    assert (tmp_path / "index" / "a").read_text() == "new"
    assert names(tmp_path) == ["index"]


def test_rest_of_an_interrupted_replacement_is_cleared(tmp_path):
    folder(tmp_path / ".index.old", a="older")
    target = folder(tmp_path / "index", a="old")
    replace_folder(folder(tmp_path / "new", a="new"), target)
    assert (target / "a").read_text() == "new"
    assert names(tmp_path) == ["index"]


def test_failing_replacement_keeps_the_old_folder(tmp_path):
    target = folder(tmp_path / "index", a="old")
    with pytest.raises(StorageError, match="no such file or folder"):
        replace_folder(tmp_path / "none", target)
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["index"]


def test_folder_bytes_adds_up_every_file(tmp_path):
    folder(tmp_path / "x" / "y", a="12345", b="67")
    (tmp_path / "c").write_bytes(bytes(1000))
    assert folder_bytes(tmp_path) == 1007


# ---------------------------------------------------------------- locks


@contextmanager
def holder(path: Path):
    """A second process that holds the lock on `path`."""
    command = [sys.executable, "-c", HOLD_LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def test_second_process_is_refused_while_the_first_holds_the_lock(tmp_path):
    path = tmp_path / "out" / "index"
    with folder_lock(path):
        done = subprocess.run([sys.executable, "-c", TRY_LOCK, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: another process is writing this folder; wait for it or choose another --output\n"


def test_lock_of_another_process_is_refused_and_free_after_kill_9(tmp_path):
    path = tmp_path / "index"
    with holder(path) as process:
        with pytest.raises(StorageError, match=re.escape(f"{path}: another process is writing this folder")):
            with folder_lock(path):
                pytest.fail("the lock is held by another process")
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL
        with folder_lock(path):
            pass


def test_lock_is_free_after_the_block_even_when_it_raises(tmp_path):
    with pytest.raises(ValueError, match="mine"):
        with folder_lock(tmp_path / "index"):
            raise ValueError("mine")
    with folder_lock(tmp_path / "index"):
        pass


def test_different_folders_lock_independently_and_the_folder_itself_is_untouched(tmp_path):
    with folder_lock(tmp_path / "one"), folder_lock(tmp_path / "two"):
        assert not (tmp_path / "one").exists()


# ---------------------------------------------------------------- manifests and hashes


def test_manifest_reads_back_with_kind_and_versions(tmp_path):
    write_manifest(tmp_path, kind="index", content={"chunks": 3, "name": "ü"})
    expected = {"kind": "index", "format_version": FORMAT_VERSION, "lm_retrieval_version": __version__}
    assert read_manifest(tmp_path, kind="index", error=IndexFormatError) == {**expected, "chunks": 3, "name": "ü"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a complete index (manifest.json is missing); build it again or check the path"),
        ("", "damaged manifest; build the index again"),
        ('{"kind": "index", "format_ver', "damaged manifest; build the index again"),
        ('["kind"]', "damaged manifest; build the index again"),
        ('{"kind": "index"}', "damaged manifest; build the index again"),
        (b"\xff\xfe\0", "damaged manifest; build the index again"),
        ('{"kind": "checkpoint", "format_version": 1}', "this is a checkpoint, a index is needed"),
        (
            f'{{"kind": "index", "format_version": {FORMAT_VERSION + 1}}}',
            f"format version {FORMAT_VERSION + 1}, this program reads {FORMAT_VERSION}; install the version",
        ),
    ],
)
@pytest.mark.parametrize("error", [IndexFormatError, CheckpointError])
def test_unusable_manifest_says_why(tmp_path, content, message, error):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=re.escape(message)) as caught:
        read_manifest(tmp_path, kind="index", error=error)
    assert str(tmp_path) in str(caught.value)


def test_missing_folder_is_named(tmp_path):
    path = tmp_path / "none"
    with pytest.raises(IndexFormatError, match=re.escape(f"{path}: no such index folder; check the path")):
        read_manifest(path, kind="index", error=IndexFormatError)


def test_json_is_readable_and_keeps_its_letters(tmp_path):
    write_json(tmp_path / "a.json", {"name": "ü", "list": [1, 2.5, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert '"name": "ü"' in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"name": "ü", "list": [1, 2.5, None]}


def test_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_hash_of_parts_depends_on_where_they_are_split():
    hashes = {sha256_bytes(b"ab", b"c"), sha256_bytes(b"a", b"bc"), sha256_bytes(b"abc"), sha256_bytes(b"abc", b"")}
    assert len(hashes) == 4
    assert sha256_bytes(b"ab", b"c") == sha256_bytes(b"ab", b"c")


def test_file_hash_is_sha256_of_all_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "long").write_bytes(b"a" * 3_000_000)
    one = sha256_file(tmp_path / "long")
    (tmp_path / "long").write_bytes(b"a" * 2_999_999 + b"b")
    assert sha256_file(tmp_path / "long") != one


def test_hash_of_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="no such file or folder"):
        sha256_file(tmp_path / "none")


def test_a_file_in_the_way_or_a_folder_without_permission_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(StorageError, match="mine: a file is in the way"), folder_lock(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o500)
    if os.geteuid() == 0:  # who may write anywhere: the mode is asked instead
        monkeypatch.setattr(os, "access", lambda path, mode: bool(Path(path).stat().st_mode & 0o200))
    with pytest.raises(StorageError, match="closed: no permission"), folder_lock(tmp_path / "closed"):
        pass
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_old_version_that_cannot_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = folder(tmp_path / "index", a="old")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    replace_folder(folder(tmp_path / "new", a="new"), target)
    assert (target / "a").read_text() == "new"
    assert f"{tmp_path / '.index.old'}: what was there before could not be deleted (Permission denied)" in caplog.text
