"""Checks, in a fresh virtual environment, that `pip install .` is the client and nothing more.

Run by `make check`. Versions come from the lock file, as constraints.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXPECTED = {"gatherd", "numpy", "grpcio", "protobuf", "typing-extensions"}


def main() -> None:
    """Install, import, list, and run the command."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "venv")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = str(environment / "bin" / "python")
        constraints = Path(folder, "constraints.txt")
        lock = (ROOT / "requirements-server.lock").read_text()
        # pip takes no hashes in a constraints file.
        pins = re.findall(r"^[a-z0-9][\w.-]*==[^\\\n]*", lock, re.MULTILINE)
        constraints.write_text("\n".join(pins))
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, "-c", str(constraints), str(ROOT)], check=True)
        subprocess.run([python, "-c", "from gatherd import Client, AsyncClient"], check=True)
        listed = subprocess.run(
            [python, "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        installed = {
            line.partition("==")[0].lower().replace("_", "-") for line in listed.splitlines()
        }
        extra = installed - EXPECTED - {"pip", "setuptools"}
        if extra:
            sys.exit(f"the base install brings more than the client needs: {sorted(extra)}")
        serve = subprocess.run(
            [environment / "bin" / "gatherd", "serve"], capture_output=True, text=True
        )
        if serve.returncode == 0 or "pip install 'gatherd[server]'" not in serve.stderr:
            sys.exit(f"`gatherd serve` doesn't say what to install: {serve.stderr}")
    print(f"base install: {', '.join(sorted(installed))}; `gatherd serve` names the extra")


if __name__ == "__main__":
    main()
