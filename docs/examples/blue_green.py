"""Blue and green: put new vectors live beside the old ones, check them, and go back if they fail.

Each `gatherd publish` makes a new version live, in one instant, and keeps the one before it. Here
the live version is blue, the new one green:

    python blue_green.py words new_vectors.txt --data-dir ./data --probes probes.txt

The probes are keys whose vectors mustn't turn far, one a line. If their mean cosine between blue
and green is below --least, blue is made live again, and the exit status is 1.

Readers that must not mix the two pin the version they began with: `client.lookup(..., version=1)`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatherd import Client, KeyNotFound


def publish(table: str, source: Path, data_dir: Path, blue: int) -> None:
    """Make the rows of a file live, unless somebody else published since we looked."""
    # The command reads any format. The data dir may be one that a server has.
    command = ["gatherd", "publish", table, str(source), "--data-dir", str(data_dir)]
    subprocess.run([*command, "--if-version", str(blue)], check=True)


def cosines(blue: NDArray[np.float32], green: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each row of one with the same row of the other: (n, dim) twice → (n,)."""
    lengths = np.linalg.norm(blue, axis=1) * np.linalg.norm(green, axis=1)
    result: NDArray[np.float32] = (blue * green).sum(axis=1) / lengths
    return result


def is_good(
    client: Client, table: str, probes: list[str], blue: int, green: int, least: float
) -> bool:
    """Whether green has every probe, and they point where they did in blue."""
    before = client.lookup(table, keys=probes, version=blue)
    try:
        after = client.lookup(table, keys=probes, version=green)
    except KeyNotFound as error:
        print(f"green lacks probes: {error}")
        return False
    mean = float(cosines(before, after).mean())
    print(f"mean cosine of {len(probes)} probes between version {blue} and {green}: {mean:.3f}")
    return mean >= least


def main() -> None:
    """Publish, check, keep or roll back."""
    parser = argparse.ArgumentParser(description="Publish new vectors, and roll back if they fail.")
    parser.add_argument("table")
    parser.add_argument("source", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--probes", type=Path, required=True)
    parser.add_argument("--least", type=float, default=0.8)
    given = parser.parse_args()
    probes = given.probes.read_text().split()
    with Client(given.url) as client:
        blue = client.table(given.table).version
        publish(given.table, given.source, given.data_dir, blue)
        green = client.table(given.table).version
        if is_good(client, given.table, probes, blue, green, given.least):
            print(f"version {green} stays live")
            return
        client.rollback(given.table, blue, if_version=green)
        print(f"version {blue} is live again")
    sys.exit(1)


if __name__ == "__main__":
    main()
