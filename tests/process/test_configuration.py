"""Settings: what is wrong is named with its source, and `gatherd config` shows each one's."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gatherd_server.access.token_file import add_token, make_grant
from gatherd_server.cli.main import cli
from gatherd_server.configuration import OTHER_VARIABLES
from gatherd_server.settings import ServeSettings
from support.cli import Done, invoke
from support.server import RunningServer

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str | Path, **environment: str) -> Done:
    done = CliRunner().invoke(cli, list(map(str, arguments)), env=environment)
    return Done(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("configuration")
    np.save(made / "w.npy", np.ones((3, 2), np.float32))
    (made / "words.txt").write_text("king 1 2\n")
    (made / "c.toml").write_text(
        '# a comment\nworkers = 3\n"keep_versions"=5\n\nbackup_url = "s3://key:secret@b/x"\n'
    )
    invoke("import", "t", made / "w.npy", "--data-dir", made / "data")
    return made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers = 0", "line 1: workers is 0, and has to be at least 1"),
        ('\nworkers = "many"', "line 2: workers is 'many', and has to be an integer"),
        ("wrokers = 1", "line 1: 'wrokers' is no setting; did you mean 'workers'?"),
        ('tls-cert = "x"', "'tls-cert' is no setting; did you mean 'tls_cert'?"),
        ("[server]\nworkers = 1", "'server' is no setting; settings are at the top of the file"),
        ('log_level = "inf"', "has to be one of debug, info, warning, error; did you mean 'info'?"),
        ('preload = "al"', "has to be one of auto, none, populate, lock"),
        ("metrics = 3", "metrics is 3, and has to be true or false"),
        ("drain_seconds = nan", "drain_seconds is nan, and has to be"),
        ('default_vector = "a=b"', "has to be a list of texts"),
        ("tls_cert = 3", "has to be a path"),
        ("backlog = 70000", "has to be at most 65535"),
        ("workers = \n", "isn't TOML: Invalid value (at line 1"),
        ("workers = 1\nworkers = 2", "isn't TOML: Cannot overwrite a value"),
        ('tls_cert = "x.pem"', "TLS takes both tls_cert and tls_key (tls_cert is from "),
        ('http = "8000"', "isn't HOST:PORT (http is from "),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(
    folder: Path, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "gatherd.toml"
    path.write_text(text)
    done = run("serve", f"w={folder}/w.npy", "--check", "--config", path)
    assert done.returncode == 2
    assert said in done.stderr
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Input should" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"GATHERD_WROKERS": "3"}, "GATHERD_WROKERS, which is no setting; did you mean 'GATHERD_W"),
        ({"GATHERD_NONSENSE_AT_ALL": "3"}, "which is no setting; unset it"),
        ({"GATHERD_WORKERS": "many"}, "GATHERD_WORKERS is 'many', and has to be an integer"),
        ({"GATHERD_METRICS": "perhaps"}, "GATHERD_METRICS is 'perhaps', and has to be true or"),
        ({"GATHERD_CONFIG": "/nowhere.toml"}, "file /nowhere.toml can't be read: No such file"),
        ({"GATHERD_HTTP": "8000"}, "(http is from GATHERD_HTTP)"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named_with_its_variable(
    folder: Path, environment: dict[str, str], said: str
) -> None:
    done = run("serve", f"w={folder}/w.npy", "--check", **environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert run("tables", "--data-dir", folder / "data", **environment).returncode == 0


def test_everything_that_is_wrong_is_said_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("wrokers = 1\nbacklog = 0\n")
    command = ("config", "--config", tmp_path / "c.toml", "--workers", "0")
    told = run(*command, GATHERD_TYPO="1").stderr
    for said in ("'wrokers'", "backlog is 0", "--workers is 0", "GATHERD_TYPO"):
        assert said in told


def test_variables_of_kubernetes_and_of_other_commands_are_no_settings() -> None:
    others = {
        "GATHERD_SERVICE_HOST": "10.0.0.1",
        "GATHERD_SERVICE_PORT_HTTP": "8000",
        "GATHERD_PORT": "tcp://10.0.0.1:8000",
        "GATHERD_PORT_8000_TCP_ADDR": "10.0.0.1",
        "GATHERD_HEADLESS_PORT_8001_TCP": "tcp://10.0.0.1:8001",
        **dict.fromkeys(OTHER_VARIABLES - {"GATHERD_CONFIG"}, "x"),
    }
    assert run("config", **others).returncode == 0
    assert "GATHERD_PORT" in run("config", GATHERD_PORT="8000").stderr


def test_config_tells_where_each_setting_is_from(folder: Path) -> None:
    path = folder / "c.toml"
    given = ("w=x.npy", "--backlog", "9", "--no-metrics", "--config", path)
    done = run("config", *given, "--json", GATHERD_KEEP_VERSIONS="7", GATHERD_TABLES="a=b")
    document = json.loads(done.stdout)
    assert list(document) == list(ServeSettings.model_fields)
    told = {name: (one["value"], one["source"], one["where"]) for name, one in document.items()}
    assert told["workers"] == (3, "file", f"{path}, line 2")
    assert told["keep_versions"] == (7, "environment", "GATHERD_KEEP_VERSIONS")
    assert told["backlog"] == (9, "option", "--backlog")
    assert told["tables"] == (["w=x.npy"], "option", "NAME=FILE")
    assert told["metrics"] == (False, "option", "--metrics")
    assert told["ids_max"] == (1048576, "default", "default")
    assert told["backup_url"] == ("s3://***@b/x", "file", f"{path}, line 5")
    assert "secret" not in done.stdout


def test_what_config_prints_can_be_read_again(folder: Path, tmp_path: Path) -> None:
    command = ("config", "wörter=a b.npy", "--backlog", "9", "--log-level", "debug")
    printed = run(*command).stdout
    (tmp_path / "again.toml").write_text(printed)
    assert tomllib.loads(printed)["tables"] == ["wörter=a b.npy"]
    again = ("config", "--config", tmp_path / "again.toml")
    values = [
        {name: one["value"] for name, one in json.loads(done.stdout).items()}
        for done in (run(*command, "--json"), run(*again, "--json"))
    ]
    assert values[0] == values[1]


def listed(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def test_check_says_what_is_fine_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    add_token(tmp_path / "tokens", make_grant("a", ["read"], ["*"], None, None))
    before = listed(folder)
    place = ("--data-dir", folder / "data", "--tokens", tmp_path / "tokens")
    done = run("serve", f"w={folder}/w.npy", *place, "--http", "0.0.0.0:0", "--check")
    assert done.returncode == 0, done.stderr
    assert "w: ok, 3 rows of 2 float32" in done.stdout
    assert "t: ok, 3 rows of 2 float32" in done.stdout
    assert listed(folder) == before


def test_check_works_beside_the_server_that_runs(folder: Path) -> None:
    with RunningServer("--data-dir", folder / "data"):
        assert run("serve", "--data-dir", folder / "data", "--check").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "nothing to serve"),
        (("w={folder}/w.npy", "--http", "0.0.0.0:0"), 2, "give --tokens FILE"),
        (
            ("w={folder}/w.npy", "--tokens", "{folder}/none"),
            2,
            "`gatherd token NAME --tokens {folder}/none` makes it",
        ),
        (
            ("w={folder}/w.npy", "--tls-cert", "{folder}/w.npy", "--tls-key", "{folder}/w.npy"),
            2,
            "w.npy",
        ),
        (("w={folder}/none.npy",), 6, "none.npy can't be opened"),
        (("w={folder}/words.txt",), 6, "`gatherd import w {folder}/words.txt "),
        (("{folder}/w.npy",), 2, "give it a name: gatherd serve w={folder}/w.npy"),
        (("--data-dir", "{folder}/none"), 2, "isn't there; `gatherd import`"),
        (("t={folder}/w.npy", "--data-dir", "{folder}/data"), 2, "is in the data dir already"),
        (("w={folder}/w.npy", "--backup-url", "/b"), 2, "needs data_dir and snapshot_dir"),
    ],
)
def test_check_refuses_what_a_start_would_refuse(
    folder: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = run("serve", *(one.format(folder=folder) for one in arguments), "--check")
    assert (done.returncode, said.format(folder=folder) in done.stderr) == (code, True), done.stderr


def test_check_names_every_damaged_table(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        size = ("--rows", "3", "--dim", "2")
        invoke("create", name, *size, "--data-dir", tmp_path / "data")
    for name in ("a", "c"):
        next((tmp_path / "data/tables" / name).rglob("weights.npy")).write_bytes(b"")
    done = run("serve", "--data-dir", tmp_path / "data", "--check")
    assert done.returncode == 6
    assert "b: ok" in done.stdout
    assert "'a' would be refused" in done.stderr
    assert "'c' would be refused" in done.stderr


def test_the_other_variables_are_documented() -> None:
    documents = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    compose = (ROOT / "docker-compose.yml").read_text()
    for name in OTHER_VARIABLES - {"GATHERD_FULL_TRACEBACKS", "GATHERD_COMMIT"}:
        assert name in documents or name in compose, name
