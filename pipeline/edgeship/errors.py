"""Every fatal error of the pipeline, with the exit code each one ends a command with.

EdgeshipError
├── UsageError         2  the command line asks for something that cannot be
├── RecipeError        3  a recipe does not parse, validate or exist
├── PlanError          4  recipe and checkpoint contradict each other, or the limits given
├── SourceError        5  the hub (or the network) did not give the checkpoint
├── CheckpointError    6  files of the checkpoint are missing, damaged or refused
├── ArchitectureError  7  config.json describes a model that is not known
├── ArtifactError      8  an artifact or output directory is not what it should be
├── ResourceError      9  disk or memory ran out
├── DependencyError   10  an optional package is needed and not installed
├── DeviceError       11  a device profile does not parse, validate or exist
├── HostError         12  a board cannot be reached, refused something, or answered what it should not
├── VerdictError      14  an artifact did not pass on a board (as in the runtime)
├── FidelityError     16  an artifact lost more against the float model than its recipe accepts
└── ExporterError     17  another exporter (Optimum, Olive) failed, or refused the options it was given

Exit code 1 is left to defects of edgeship itself, 130 to an interrupt by the user, 129 and 143 to SIGHUP and SIGTERM.
The runtime's own errors and codes live in `edgeship_runtime.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping


class EdgeshipError(Exception):
    """A failure with a message for the user: what was expected, what was found, what follows, and a hint."""

    exit_code = 1
    kind = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class UsageError(EdgeshipError):
    """The command line asks for something that cannot be."""

    exit_code = 2
    kind = "usage"


class RecipeError(EdgeshipError):
    """A recipe does not parse, validate or exist."""

    exit_code = 3
    kind = "recipe"


class PlanError(EdgeshipError):
    """Recipe and checkpoint contradict each other, or the limits given."""

    exit_code = 4
    kind = "plan"


class SourceError(EdgeshipError):
    """The hub, or the network on the way to it, did not give the checkpoint."""

    exit_code = 5
    kind = "source"


class CheckpointError(EdgeshipError):
    """Files of the checkpoint are missing, damaged or refused."""

    exit_code = 6
    kind = "checkpoint"


class ArchitectureError(EdgeshipError):
    """config.json describes a model that is not known."""

    exit_code = 7
    kind = "architecture"


class ArtifactError(EdgeshipError):
    """An artifact or an output directory is not what it should be."""

    exit_code = 8
    kind = "artifact"


class ResourceError(EdgeshipError):
    """Disk or memory ran out."""

    exit_code = 9
    kind = "resource"


class DependencyError(EdgeshipError):
    """An optional package is needed and not installed."""

    exit_code = 10
    kind = "dependency"


class DeviceError(EdgeshipError):
    """A device profile does not parse, validate or exist."""

    exit_code = 11
    kind = "device"


class HostError(EdgeshipError):
    """A board cannot be reached, refused something, or answered what it should not."""

    exit_code = 12
    kind = "host"


class VerdictError(EdgeshipError):
    """An artifact did not pass on a board."""

    exit_code = 14
    kind = "verdict"


class FidelityError(EdgeshipError):
    """An artifact lost more against the float model, or is larger, than its recipe accepts.

    `raises` would repair that: names of encodings by the keys of tensors; empty where nothing is left to raise.
    """

    exit_code = 16
    kind = "fidelity"

    def __init__(self, message: str, *, hint: str = "", raises: Mapping[str, str] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.raises = dict(raises or {})


class ExporterError(EdgeshipError):
    """Another exporter (Optimum, Olive) failed, or refused the options it was given."""

    exit_code = 17
    kind = "exporter"
