"""An accepted toy artifact of each format, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from acceptance_files import write_acceptance
from command_line import Ended
from edgeship_runtime import cli
from toy_artifact import write_toy
from toy_gguf import FORMS, write_toy_gguf_artifact


@pytest.fixture(scope="session", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def artifact(form: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory above an artifact of each format in turn, so that both engines pass the same tests."""
    write = {"onnx": write_toy, "gguf": write_toy_gguf_artifact}[form]
    toy = write(tmp_path_factory.mktemp("artifacts") / "toy" / form)
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
