"""What memory there is to have, by the machine and by control groups of both versions."""

from pathlib import Path

import pytest

from gatherd.store.memory import available_bytes

MACHINE = 8_000_000 * 1024
UNLIMITED_V1 = "9223372036854771712\n"


def available(folder: Path, groups: str, files: dict[str, str]) -> int:
    """What is available where /proc/self/cgroup says `groups` and the mounted ones hold `files`."""
    written = {
        "proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n",
        "proc/self/cgroup": groups,
        **{f"groups/{name}": text for name, text in files.items()},
    }
    for name, text in written.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return available_bytes(str(folder / "proc"), str(folder / "groups"))


STAT_V2 = "anon 1000\nanon_thp 7\nfile 90000\nshmem 500\n"
STAT_V1 = "rss 3\nshmem 3\ntotal_cache 90000\ntotal_rss 1000\ntotal_shmem 500\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("", {}, MACHINE, id="no groups"),
        pytest.param("0::/\n", {}, MACHINE, id="a root without a limit"),
        pytest.param("0::/a\n", {"a/memory.max": "max\n"}, MACHINE, id="no limit"),
        pytest.param(
            "0::/a\n", {"a/memory.max": "10000\n", "a/memory.stat": STAT_V2}, 8_500, id="limit"
        ),
        pytest.param(
            "0::/a/b/c\n",
            {
                "a/memory.max": "20000\n",
                "a/memory.stat": STAT_V2,
                "a/b/memory.max": "max\n",
                "a/b/c/memory.max": "90000\n",
            },
            18_500,
            id="an ancestor's limit",
        ),
        pytest.param(
            "0::/../host/path\n", {"memory.max": "7000\n"}, 7_000, id="seen from a container"
        ),
        pytest.param(
            "0::/a\n", {"a/memory.max": "900\n", "a/memory.stat": STAT_V2}, 0, id="over its limit"
        ),
        pytest.param(
            "9:memory:/a\n3:cpu,cpuacct:/b\n",
            {
                "memory/memory.limit_in_bytes": UNLIMITED_V1,
                "memory/a/memory.limit_in_bytes": "10000\n",
                "memory/a/memory.stat": STAT_V1,
            },
            8_500,
            id="version 1",
        ),
        pytest.param(
            "9:memory:/\n",
            {"memory/memory.limit_in_bytes": UNLIMITED_V1},
            MACHINE,
            id="version 1 without a limit",
        ),
    ],
)
def test_available_memory_is_what_machine_and_groups_leave(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    assert available(tmp_path, groups, files) == expected


def test_memory_that_cannot_be_told_is_none(tmp_path: Path) -> None:
    assert available_bytes(str(tmp_path / "proc"), str(tmp_path / "groups")) == 0


def test_this_machine_has_some() -> None:
    assert available_bytes() > 0
