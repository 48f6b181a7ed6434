"""Every fatal error of the runtime, with the exit code each one ends a command with.

EdgeshipRuntimeError
├── UsageError         2  a command line, an argument or an option asks for something that cannot be
├── ArtifactError      8  the artifact is missing, damaged, refused, or not what its manifest says
├── ResourceError      9  disk or memory ran out
├── DependencyError   10  an optional package is needed and not installed
├── ContextError      11  the prompt does not fit into the context
├── EngineError       12  the engine failed, or was given (or gave) something that is no model's
├── TemplateError     13  the chat template does not parse, is unsafe, or refuses the conversation
└── VerifyError       14  the artifact runs, and does not give what its acceptance test expects

Exit code 1 is left to defects of edgeship itself, and 130 to an interrupt by the user. Codes 2, 8, 9 and 10
mean the same as those of the pipeline's `edgeship.errors`.
"""

from __future__ import annotations


class EdgeshipRuntimeError(Exception):
    """A failure with a message for the user: what was expected, what was found, what follows, and a hint."""

    exit_code = 1
    kind = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message

    def to_json(self) -> dict[str, object]:
        """What `--json` prints about it."""
        return {"kind": self.kind, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}


class UsageError(EdgeshipRuntimeError):
    """A command line, an argument or an option asks for something that cannot be."""

    exit_code = 2
    kind = "usage"


class ArtifactError(EdgeshipRuntimeError):
    """The artifact is missing, damaged, refused, or not what its manifest says."""

    exit_code = 8
    kind = "artifact"


class ResourceError(EdgeshipRuntimeError):
    """Disk or memory ran out."""

    exit_code = 9
    kind = "resource"


class DependencyError(EdgeshipRuntimeError):
    """An optional package is needed and not installed."""

    exit_code = 10
    kind = "dependency"


class ContextError(EdgeshipRuntimeError):
    """The prompt does not fit into the context."""

    exit_code = 11
    kind = "context"


class EngineError(EdgeshipRuntimeError):
    """The engine failed, or was given (or gave) something that is no model's."""

    exit_code = 12
    kind = "engine"


class TemplateError(EdgeshipRuntimeError):
    """The chat template does not parse, is unsafe, or refuses the conversation."""

    exit_code = 13
    kind = "template"


class VerifyError(EdgeshipRuntimeError):
    """The artifact runs, and does not give what its acceptance test expects."""

    exit_code = 14
    kind = "verify"


class ServiceError(EdgeshipRuntimeError):
    """The service does not run, or the service manager does not do what it was asked."""

    exit_code = 17
    kind = "service"


def missing_package(package: str, extra: str, wanted_for: str) -> DependencyError:
    """Return the error for an optional package that cannot be imported, with the pip command that installs it."""
    return DependencyError(
        f"{wanted_for} needs the package {package!r}, which is not installed (or does not import)",
        hint=f"pip install 'edgeship-runtime[{extra}]'",
    )
