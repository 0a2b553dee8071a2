"""Weights are fetched whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from moa_dspy.errors import ChecksumError, LocalModelError
from moa_dspy.local import (
    Source,
    Weights,
    find,
    models_table,
    pull,
    sha256_of,
    verify,
    weights_status,
)

CONTENT = b"GGUF" + bytes(range(96))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Shelf:
    """A source that has ``content``, or breaks off after half of it."""

    content: bytes = CONTENT
    breaks: bool = False
    n_copies: int = 1
    n_fetches: int = 0

    def fetch(self, target: Path) -> None:
        self.n_fetches += 1
        if self.breaks:
            target.write_bytes(self.content[: len(self.content) // 2])
            raise LocalModelError("the line broke.")
        target.write_bytes(self.content)


def catalogue_of(*sources: Source) -> MappingProxyType[str, Weights]:
    tiny = Weights("tiny", SHA256, len(CONTENT), "MIT", sources)
    return MappingProxyType({"tiny": tiny})


def test_pull_puts_the_file_under_its_name_and_asks_once(tmp_path: Path) -> None:
    shelf, lines = Shelf(), list[str]()
    catalogue = catalogue_of(shelf)
    path = pull("tiny", folder=tmp_path / "new", catalogue=catalogue, progress=lines.append)
    assert path == tmp_path / "new" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert pull("tiny", folder=tmp_path / "new", catalogue=catalogue, offline=True) == path
    assert shelf.n_fetches == 1
    assert len(lines) == 2


def test_a_broken_source_gives_way_to_the_next_and_leaves_nothing(tmp_path: Path) -> None:
    broken = Shelf(breaks=True)
    path = pull("tiny", folder=tmp_path, catalogue=catalogue_of(broken, Shelf()))
    assert broken.n_fetches == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.gguf", "tiny.gguf.sha256"]
    assert path.read_bytes() == CONTENT


def test_with_no_source_left_every_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError, match=r"tiny could not be downloaded\. the line broke\."):
        pull("tiny", folder=tmp_path, catalogue=catalogue_of(Shelf(breaks=True)))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_is_removed_and_both_sums_are_named(tmp_path: Path) -> None:
    wrong = b"GGUF something else"
    found = hashlib.sha256(wrong).hexdigest()
    second = Shelf()
    with pytest.raises(ChecksumError, match=f"{found}.*{SHA256}"):
        pull("tiny", folder=tmp_path, catalogue=catalogue_of(Shelf(content=wrong), second))
    assert list(tmp_path.iterdir()) == []
    assert second.n_fetches == 0, "a wrong file is for a person to look at"


def test_a_full_disk_is_found_out_before_the_download(tmp_path: Path) -> None:
    big = Weights("tiny", SHA256, 3_000_000, "MIT", (shelf := Shelf(n_copies=2),))
    # 2 copies of 3 MB are needed, 5 MB are free
    with pytest.raises(LocalModelError, match=r"needs 6 MB, but .* has only 5 MB of free"):
        pull("tiny", folder=tmp_path, catalogue={"tiny": big}, free_bytes=lambda _: 5_000_000)
    assert shelf.n_fetches == 0


def test_absent_and_offline_asks_nobody(tmp_path: Path) -> None:
    shelf = Shelf()
    with pytest.raises(LocalModelError, match="offline"):
        pull("tiny", folder=tmp_path, catalogue=catalogue_of(shelf), offline=True)
    assert shelf.n_fetches == 0


def test_a_damaged_file_of_the_right_size_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(bytes(len(CONTENT)))
    path = pull("tiny", folder=tmp_path, catalogue=catalogue_of(Shelf()))
    assert path.read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made_is_a_local_model_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LocalModelError, match="cannot be written"):
        pull("tiny", folder=tmp_path / "file", catalogue=catalogue_of(Shelf()))


def test_the_remembered_sum_is_used_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(CONTENT)
    assert sha256_of(path) == SHA256
    stamp = path.stat()
    # Other bytes under the old size and time: only a remembered sum can still be the old one.
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert sha256_of(path) == SHA256
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert sha256_of(path) == hashlib.sha256(CONTENT[::-1]).hexdigest()


@pytest.mark.parametrize("note", ["", "nonsense", "a b c d", "\u00e9"])
def test_a_spoilt_side_file_is_no_proof(tmp_path: Path, note: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(CONTENT)
    path.with_name("a.gguf.sha256").write_text(note, encoding="utf-8")
    verify(path, SHA256)
    with pytest.raises(ChecksumError, match=f"{SHA256}, but 0000 was expected"):
        verify(path, "0000")


def test_find_says_what_to_run(tmp_path: Path) -> None:
    catalogue = catalogue_of(Shelf())
    with pytest.raises(LocalModelError, match="run `moa-dspy models pull tiny`"):
        find("tiny", folder=tmp_path, catalogue=catalogue)
    (tmp_path / "tiny.gguf").write_bytes(CONTENT[:-1])
    with pytest.raises(LocalModelError, match=r"99 bytes instead of 100; run `moa-dspy models"):
        find("tiny", folder=tmp_path, catalogue=catalogue)
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    assert find("tiny", folder=tmp_path, catalogue=catalogue) == tmp_path / "tiny.gguf"


def test_find_takes_the_path_of_a_gguf_and_of_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    with pytest.raises(LocalModelError, match="neither a file nor a known model; known: "):
        find(path)
    path.write_bytes(b"<html>")
    with pytest.raises(LocalModelError, match="is not a GGUF file"):
        find(path)
    path.write_bytes(CONTENT)
    assert find(str(path)) == path
    with pytest.raises(LocalModelError, match="cannot be read"):
        find(tmp_path)


def test_the_table_tells_absent_present_and_checked(tmp_path: Path) -> None:
    catalogue = catalogue_of(Shelf())

    def status() -> tuple[bool, bool]:
        (row,) = models_table(folder=tmp_path, catalogue=catalogue)
        return row.present, row.checked

    assert status() == (False, False)
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    assert status() == (True, False)
    assert weights_status("tiny", folder=tmp_path, catalogue=catalogue) == tmp_path / "tiny.gguf"
    assert status() == (True, True)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(LocalModelError, match=r"Unknown model 'huge'; known ones are qwen2\.5"):
        pull("huge")
    with pytest.raises(LocalModelError, match="Unknown model 'huge'"):
        weights_status("huge")
