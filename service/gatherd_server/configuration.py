"""Reads the settings: command line over environment over TOML file, and keeps each one's source.

An unknown variable or entry is an error, as is a value out of bounds. Errors are in our own words
and name the option, the variable, or the file and its line. Variables that Kubernetes makes for a
Service called gatherd are passed. Left out on purpose: .env files, and nested tables of TOML.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gatherd._suggestions import did_you_mean, near
from gatherd_server.errors import ConfigError
from gatherd_server.observe.logs import LogFormat
from gatherd_server.settings import ServeSettings

ENVIRONMENT_PREFIX: Final = "GATHERD_"
CONFIG_ENVIRONMENT: Final = "GATHERD_CONFIG"
CONFIG_BYTES_MAX: Final = 1 << 20
VALUE_CHARS_SHOWN_MAX: Final = 64

# Variables of other parts of gatherd: the commands that ask a server, the image, the SDK, Compose.
OTHER_VARIABLES: Final = frozenset(
    {
        CONFIG_ENVIRONMENT,
        "GATHERD_URL",
        "GATHERD_TOKEN",
        "GATHERD_TOKEN_FILE",
        "GATHERD_CA",
        "GATHERD_CERT",
        "GATHERD_KEY",
        "GATHERD_BUILT_KERNELS",
        "GATHERD_FULL_TRACEBACKS",
        "GATHERD_COMMIT",
        "GATHERD_DEMO",
        "GATHERD_MEMORY",
        "GATHERD_HTTP_PORT",
        "GATHERD_GRPC_PORT",
    }
)
# Kubernetes sets these in every pod for a Service called gatherd or gatherd-…
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_KUBERNETES: Final = re.compile(
    r"GATHERD_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)"
)
_KUBERNETES_PORT: Final = re.compile(r"(?:tcp|udp|sctp)://")

Kind = Literal["option", "environment", "file", "default"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a setting's value is from; `where` is the option, the variable, or file and line."""

    kind: Kind
    where: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings, and the source of each."""

    settings: ServeSettings
    sources: Mapping[str, Source]

    def located(self, error: ConfigError) -> ConfigError:
        """`error` with the sources of the settings that it is about, under `settings`."""
        names = [name for name in error.metadata.get("settings", "").split() if name]
        places = [self.sources[name] for name in names]
        told = [
            f"{name} is from {source.where}"
            for name, source in zip(names, places, strict=True)
            if source.kind in ("environment", "file")
        ]
        return ConfigError(f"{error.message} ({', '.join(told)})") if told else error


def load_configuration(options: Mapping[str, Any], config: Path | None = None) -> Configuration:
    """Settings from command-line `options` (those given), environment and TOML file.

    ConfigError names each setting that is wrong, says where it is from, and what is right.
    """
    problems: list[str] = []
    values, sources = _read(options, config, problems)
    try:
        settings = ServeSettings(**values)
    except ValidationError as error:
        problems += [_problem(one, sources) for one in error.errors()]
    if problems:
        raise ConfigError("; ".join(problems))
    return Configuration(settings, sources)


def log_format_of(options: Mapping[str, Any], config: Path | None = None) -> LogFormat:
    """The log's format, also when other settings are wrong: that is to be told in it."""
    try:
        return LogFormat(_read(options, config, [])[0].get("log_format", LogFormat.TEXT))
    except (ConfigError, ValueError):
        return LogFormat.TEXT


def _read(
    options: Mapping[str, Any], config: Path | None, problems: list[str]
) -> tuple[dict[str, Any], dict[str, Source]]:
    values: dict[str, Any] = {}
    sources = dict.fromkeys(ServeSettings.model_fields, Source("default", "default"))
    named = config or os.environ.get(CONFIG_ENVIRONMENT)
    layers = [
        *([_from_file(Path(named), problems)] if named else []),
        _from_environment(problems),
        ((name, value, Source("option", option_of(name))) for name, value in options.items()),
    ]
    for layer in layers:
        for name, value, source in layer:
            values[name], sources[name] = value, source
    return values, sources


def option_of(name: str) -> str:
    """A setting's option, or the argument that it is."""
    return "NAME=FILE" if name == "tables" else f"--{name.replace('_', '-')}"


def _from_environment(problems: list[str]) -> Iterable[tuple[str, Any, Source]]:
    for variable, text in sorted(os.environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or _is_other(variable, text):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        field = ServeSettings.model_fields.get(name)
        if field is None or variable != variable.upper():
            meant = near(name, ServeSettings.model_fields, 1)
            known = [ENVIRONMENT_PREFIX + one.upper() for one in meant]
            hint = did_you_mean(known) or "; unset it"
            problems.append(f"the environment has {variable}, which is no setting{hint}")
            continue
        # A list is separated by blanks, as it would be on the command line.
        value = text.split() if get_origin(field.annotation) is tuple else text
        yield name, value, Source("environment", variable)


def _is_other(variable: str, text: str) -> bool:
    if variable in OTHER_VARIABLES or _KUBERNETES.fullmatch(variable):
        return True
    return variable.endswith("_PORT") and _KUBERNETES_PORT.match(text) is not None


def _from_file(path: Path, problems: list[str]) -> list[tuple[str, Any, Source]]:
    try:
        with open(path, "rb") as file:
            text = file.read(CONFIG_BYTES_MAX + 1).decode()
        if len(text) > CONFIG_BYTES_MAX:
            raise ConfigError(f"the configuration file {path} has over {CONFIG_BYTES_MAX} bytes")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"the configuration file {path} can't be read: {error.strerror or error}; --config and "
            f"{CONFIG_ENVIRONMENT} name one"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration file {path} isn't TOML: {error}") from None
    found = []
    for name, value in document.items():
        where = f"{path}, line {_line_of(text, name)}"
        if name in ServeSettings.model_fields:
            found.append((name, value, Source("file", where)))
            continue
        hint = did_you_mean(near(name, ServeSettings.model_fields, 1))
        if isinstance(value, dict) and not hint:
            hint = "; settings are at the top of the file, in no table"
        problems.append(f"{where}: {name!r} is no setting{hint}")
    return found


def _line_of(text: str, name: str) -> int:
    """The number of the line that assigns an entry at the top of a TOML file."""
    key = re.escape(name)
    match = re.search(rf"""^[ \t]*(?:\[\s*)?["']?{key}["']?\s*[=.\]]""", text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match else 1


def _problem(error: ErrorDetails, sources: Mapping[str, Source]) -> str:
    name = str(error["loc"][0])
    source, value = sources[name], shown(name, error["input"])
    said = f"{source.where} is {value}" if source.kind != "file" else f"{name} is {value}"
    what = f"{said}, and {_wanted(error, name)}"
    return f"{source.where}: {what}" if source.kind == "file" else what


def _wanted(error: ErrorDetails, name: str) -> str:
    kind, context = error["type"], error.get("ctx", {})
    annotation = ServeSettings.model_fields[name].annotation
    match kind.partition("_")[0]:
        case "greater":
            return f"has to be at least {context.get('ge', context.get('gt'))}"
        case "less":
            return f"has to be at most {context.get('le', context.get('lt'))}"
        case "int":
            return "has to be an integer"
        case "float" | "finite":
            return "has to be a number"
        case "bool":
            return "has to be true or false"
        case "enum" | "literal":
            known = choices_of(annotation)
            return f"has to be one of {', '.join(known)}{did_you_mean(near(error['input'], known))}"
        case "path":
            return "has to be a path"
        case "tuple" | "list":
            return "has to be a list of texts"
        case "string":
            return "has to be a text"
        case _:
            return f"can't be taken: {error['msg']}"


def choices_of(annotation: Any) -> list[str]:
    """The values of a setting that is one of a few; [] of any other."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def shown(name: str, value: object) -> str:
    """A setting's value for people, without a password that is in a URL."""
    value = masked(name, value)
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= VALUE_CHARS_SHOWN_MAX else f"{text[:VALUE_CHARS_SHOWN_MAX]}…"


def masked(name: str, value: object) -> object:
    """`value`, or for a URL with a user and password the URL with *** instead."""
    if name != "backup_url" or not isinstance(value, str):
        return value
    return re.sub(r"(?<=://)[^/]*@", "***@", value)
