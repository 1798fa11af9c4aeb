"""The errors a user can meet, each with the exit code the command line ends with.

Everything the package raises on purpose derives from `DarlRerankError`; the command line prints such an error as
one line and never as a traceback.
"""

from __future__ import annotations

from pathlib import Path


class DarlRerankError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line exits with."""

    exit_code = 1


class InputError(DarlRerankError):
    """Data or an argument is not what it should be.

    Args:
        message: what was expected and what came instead.
        path: the file at fault, if the fault is in a file.
        line: its line, counted from 1.
    """

    exit_code = 3

    def __init__(self, message: str, *, path: str | Path | None = None, line: int | None = None) -> None:
        self.path = None if path is None else str(path)
        self.line = line
        place = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        super().__init__(place + message)


class MissingDependencyError(DarlRerankError):
    """A package is not installed; the message ends with the one command that installs it.

    Args:
        module: the package.
        extra: the extra of this package that brings it.
        why: what it is needed for.
        command: what installs it, where no extra does.
    """

    exit_code = 4

    def __init__(self, module: str, extra: str, why: str = "", *, command: str | None = None) -> None:
        self.module, self.extra = module, extra
        reason = f" ({why})" if why else ""
        command = command or f"pip install 'darl-rerank[{extra}]'"
        super().__init__(f"{module} is needed{reason} but not installed: {command}")


class OutdatedDependencyError(MissingDependencyError):
    """A package of an extra is installed in a version that lacks what is needed."""

    def __init__(self, module: str, extra: str, *, found: str, at_least: str) -> None:
        self.module, self.extra = module, extra
        DarlRerankError.__init__(
            self,
            f"{module} {found} is installed, but at least {at_least} is needed: pip install -U 'darl-rerank[{extra}]'",
        )


class CheckFailedError(DarlRerankError):
    """A check the user asked for did not pass: parity, a threshold."""

    exit_code = 5
