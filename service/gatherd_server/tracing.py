"""OpenTelemetry spans, by the extra `gatherd[otel]`; nothing of it is imported while it is off."""

from enum import Enum


class TraceExport(Enum):
    """Where spans go."""

    OFF = "off"
    OTLP = "otlp"
    CONSOLE = "console"
