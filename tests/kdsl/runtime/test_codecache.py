"""The code cache: what is executed is what was generated, whoever else may write there."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kdsl.errors import StoreError, UnsupportedError
from kdsl.runtime import codecache

ROOT = Path(__file__).parents[3]
SOURCE = "answer = 42\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own; the folder of generated code in it."""
    monkeypatch.setenv("KDSL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gen"


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """KDSL_CACHE_DIR first, then XDG's cache folder, then ~/.cache."""
    monkeypatch.setenv("KDSL_CACHE_DIR", "/a")
    assert codecache.cache_folder() == Path("/a")
    monkeypatch.delenv("KDSL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert codecache.cache_folder() == Path("/b/kdsl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert codecache.cache_folder() == Path("/h/.cache/kdsl")


def test_one_file_and_one_module_a_text(cache: Path) -> None:
    """The folder is the owner's alone, the file holds the text, the module is made once."""
    module = codecache.load(SOURCE)
    assert module.answer == 42
    assert codecache.load(SOURCE) is module
    assert cache.stat().st_mode & 0o777 == 0o700
    (file,) = cache.iterdir()
    assert file.read_text() == SOURCE


@pytest.mark.parametrize("change", ["answer = 43\n", "", SOURCE + "\n", SOURCE[:5]])
def test_a_tampered_file_is_not_executed(cache: Path, change: str, tmp_path: Path) -> None:
    """A changed, emptied, lengthened or cut file is an error that names it, and nothing runs."""
    mark = tmp_path / "ran"
    source = f"open({str(mark)!r}, 'w').close()\n"
    path = codecache.store(source)
    path.write_text(change)
    with pytest.raises(StoreError, match="was not executed") as caught:
        codecache.load(source)
    assert caught.value.where == str(path)
    assert f"rm {path}" in caught.value.hint
    assert not mark.exists()
    path.unlink()
    codecache.load(source)
    assert mark.exists()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_may_write_to_is_refused(cache: Path, mode: int) -> None:
    """Its mode, and what would mend it, are in the error."""
    cache.mkdir(parents=True)
    cache.chmod(mode)
    with pytest.raises(StoreError, match="others may write") as caught:
        codecache.store(SOURCE)
    assert f"mode {mode:o}" in caught.value.where
    assert f"chmod 700 {cache}" in caught.value.hint


def test_a_folder_of_somebody_else_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one with another owner, whatever its mode."""
    codecache.store(SOURCE)
    monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    with pytest.raises(StoreError, match="belongs to somebody else"):
        codecache.store(SOURCE)


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a file there is no folder: the error names the variable that moves the cache."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDSL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(StoreError, match="cannot be made") as caught:
        codecache.store(SOURCE)
    assert "KDSL_CACHE_DIR=" in caught.value.hint


def test_a_full_disk_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says to free space, no half file stays, and the next try works."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device") as caught:
            codecache.store(SOURCE)
    assert "free some space" in caught.value.hint
    assert not list(cache.iterdir())
    assert codecache.load(SOURCE).answer == 42


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from kdsl.errors import StoreError
from kdsl.runtime import codecache
try:
    codecache.store("x = 1  # " + "long " * 1000)
except StoreError as error:
    print(error.what)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_file_cut_by_the_system_is_none(cache: Path) -> None:
    """Where the system writes only a part, the whole is refused and the part removed."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("generated code cannot be written"), done.stderr
    assert not list(cache.iterdir())


BUILDS = """
import sys
import kdsl
from kdsl import masks
from kdsl.runtime import codecache
sys.stdin.readline()
spec = kdsl.Attention(tokens=300, heads=1, head_dim=64, mask=masks.causal(7))
print(codecache.store(kdsl.build(spec, gpu="a100").source))
"""


def test_processes_that_build_the_same_spec_do_not_meet(cache: Path) -> None:
    """Four that start at once all name one whole file, and leave nothing else."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDS],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = {racer.communicate()[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0] * 4
    (file,) = cache.iterdir()
    assert said == {str(file)}
    assert "attention_forward" in file.read_text()


def test_a_missing_package_is_named(cache: Path) -> None:
    """Generated code whose imports fail says what to install; with it, the same text loads."""
    source = "import package_that_nobody_has\n"
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="package_that_nobody_has") as caught:
            codecache.load(source)
        assert caught.value.hint == 'pip install "kdsl-kernels[triton]"'
