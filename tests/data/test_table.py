"""Records in arrays are the records that went in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonlocal_nn.data.manifest import read_manifest
from nonlocal_nn.data.table import Hashes, Member, RecordTable, Texts, VideoRecord

SECONDS = st.none() | st.floats(0, 1e4)
ACTIONS = st.tuples(st.integers(0, 9), st.floats(0, 9), st.floats(0, 9))
SIZES = st.integers(0, 9)
RECORDS = st.lists(
    st.builds(
        VideoRecord,
        path=st.text(st.characters(), max_size=12),  # surrogates, too
        labels=st.lists(st.integers(0, 400), max_size=3).map(tuple),
        start_seconds=SECONDS,
        end_seconds=SECONDS,
        exact_seconds=st.booleans(),
        group=st.none() | st.sampled_from(["a", ""]),
        part=st.sampled_from([(), ("x",), ("x", "y")]),
        actions=st.lists(st.tuples(st.integers(0, 9), st.floats(0, 9), st.floats(0, 9)), max_size=2).map(
            tuple
        ),
        member=st.none()
        | st.builds(Member, st.sampled_from(["s0", "s1"]), st.integers(0, 2**40), st.integers(0, 9)),
    ),
    max_size=6,
)


@given(RECORDS)
def test_what_goes_in_comes_out(records: list[VideoRecord]) -> None:
    table = RecordTable(records)
    assert list(table) == records == [table[row] for row in range(len(table))]
    assert [record[:4] for record in records] == list(table.rows())
    assert list(table.actions()) == [record.actions for record in records]
    assert table.groups() == [record.group for record in records]
    assert table.parts() == [record.part for record in records]
    assert table.labels.tolist() == [label for record in records for label in record.labels]
    crowded = [record for record in records if len(record.labels) != 1]
    assert table.first_without_one_label() == (crowded[0] if crowded else None)
    assert table[1:3] == records[1:3]
    assert list(table.without([0])) == records[1:]
    assert table == RecordTable(records)
    assert table != RecordTable([*records, VideoRecord("z", (0,))])


def test_places_outside_are_refused() -> None:
    for table in (RecordTable([VideoRecord("a", (0,))]), Texts(["a"])):
        assert table[-1] == table[0]
        with pytest.raises(IndexError):
            table[1]


@given(st.lists(st.text(max_size=2), max_size=20), st.text(max_size=2))
def test_hashes_are_a_set_with_places(texts: list[str], asked: str) -> None:
    hashes = Hashes(texts)
    assert (asked in hashes) == (asked in texts)
    assert list(hashes.places(asked)) == [place for place, text in enumerate(texts) if text == asked]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux says what a process holds")
def test_a_loader_process_copies_nothing_of_a_long_list(tmp_path: Path) -> None:
    """Going through all records in a forked process adds next to nothing to its own memory."""
    rows = 60_000
    (tmp_path / "list.txt").write_text("".join(f"a{n}.mp4 {n % 7}\n" for n in range(rows)))
    for n in range(rows):
        os.close(os.open(tmp_path / f"a{n}.mp4", os.O_CREAT))
    records = read_manifest(tmp_path / "list.txt").records

    def own_bytes() -> int:
        text = Path("/proc/self/smaps_rollup").read_text()
        return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        before = own_bytes()
        for row in range(rows):
            records[row * 7919 % rows]
        os.write(writer, str(own_bytes() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reader, 100)) < 2**20
