"""An accepted toy artifact, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from acceptance_files import write_acceptance
from command_line import Ended
from edgeship_runtime import cli
from toy_artifact import write_toy


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    toy = write_toy(tmp_path_factory.mktemp("artifacts") / "toy" / "onnx")
    return str(write_acceptance(toy).parent)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a command line in this process."""

    def run(*arguments: object) -> Ended:
        try:
            code = cli.main([str(each) for each in arguments])
        except SystemExit as end:  # --help and --version end that way
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run
