"""The demo's table: 32,000 trained token vectors of 256, and the tokens.

    python table.py FOLDER     # puts tokens.safetensors and tokens.txt there, if missing

They are read out of the wheel that requirements.txt beside this file pins; nothing of it is
installed. Needs Python and pip alone, so that an image's build can run it.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
WEIGHTS = "wordllama/weights/l2_supercat_256.safetensors"
TOKENIZER = "wordllama/tokenizers/l2_supercat_tokenizer_config.json"
TENSOR = "embedding.weight"


def fetch(folder: Path) -> tuple[Path, dict[str, int]]:
    """The table's file and its vocabulary, token to id; downloaded when they aren't here yet."""
    weights, tokenizer = folder / Path(WEIGHTS).name, folder / Path(TOKENIZER).name
    if not (weights.exists() and tokenizer.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        print("fetching the table: the wordllama wheel, about 19 MB, once", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        wheel_of = ["--no-cache-dir", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        tags = ["--python-version", "3.11", "--abi", "cp311", "--implementation", "cp"]
        platform = ["--platform", "manylinux2014_x86_64", "-d", str(folder)]
        wanted = ["-r", str(HERE / "requirements.txt")]
        subprocess.run([*pip, *wheel_of, *tags, *platform, *wanted], check=True)
        (wheel,) = folder.glob("wordllama-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for member, target in ((WEIGHTS, weights), (TOKENIZER, tokenizer)):
                partial = target.with_suffix(".partial")
                partial.write_bytes(archive.read(member))
                partial.rename(target)
        wheel.unlink()
    vocabulary = json.loads(tokenizer.read_text("utf-8"))["model"]["vocab"]
    return weights, vocabulary


def write_keys(vocabulary: dict[str, int], path: Path) -> None:
    """The tokens, a line each in the order of their rows, as `gatherd import --keys` reads them."""
    # Some tokens end in a carriage return, which a key file's line can't: its picture replaces it.
    picture = "\N{SYMBOL FOR CARRIAGE RETURN}"
    tokens = [
        token.replace("\r", picture) for token in sorted(vocabulary, key=vocabulary.__getitem__)
    ]
    path.write_text("".join(f"{token}\n" for token in tokens), "utf-8")


def main() -> None:
    """Fetch both into the folder, as tokens.safetensors and tokens.txt."""
    folder = Path(sys.argv[1])
    weights, vocabulary = fetch(folder)
    write_keys(vocabulary, folder / "tokens.txt")
    weights.rename(folder / "tokens.safetensors")
    (folder / Path(TOKENIZER).name).unlink()


if __name__ == "__main__":
    main()
