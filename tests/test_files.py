"""What the program writes for itself is read back as it was, whatever the file system's names hold."""

import json
import os
from pathlib import Path

import pytest

from clipwise.data.failures import Failure
from clipwise.files import printable, write_json
from clipwise.training.account import read_unreadable, write_unreadable

# Bytes that are no UTF-8, two names that differ in these alone, half a surrogate pair as Windows and JSON allow it.
NAMES = [os.fsdecode(b"v\xff.avi"), os.fsdecode(b"v\xfe.avi"), "ü\ud800.avi", 'quote"\\.avi', "手.avi"]


def test_names_in_json_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "names.json", {name: [name] for name in NAMES})
    text = (tmp_path / "names.json").read_text(encoding="utf-8")
    assert "手" in text
    assert json.loads(text) == {name: [name] for name in NAMES}


@pytest.mark.parametrize(("name", "shown"), list(zip(NAMES, ["v�.avi", "v�.avi", "ü�.avi", *NAMES[3:]], strict=True)))
def test_printable(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(Path("a", name)) == str(Path("a", shown))


def test_unreadable_videos_are_told_apart(tmp_path: Path) -> None:
    failures = [Failure(name, "is damaged") for name in NAMES]
    write_unreadable(tmp_path, failures, failures[:1])
    assert read_unreadable(tmp_path) == {"training": failures, "validation": failures[:1]}
