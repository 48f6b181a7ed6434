"""What calibration takes of memory, beside what a plan says that it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tolerances
from checkpoints import write_checkpoint
from edgeship import archs
from edgeship.calibration import Calibration
from edgeship.checkpoint.checkpoint import open_checkpoint
from edgeship.memory import RESERVED

CHOOSING = """
import sys
from pathlib import Path
import numpy as np
from edgeship import archs
from edgeship.calibrate.quantize import Calibrator
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.encodings import ENCODINGS
from edgeship.memory import peak_rss
from edgeship.progress import Silent
from edgeship.reference.weights import CheckpointWeights

checkpoint = open_checkpoint(Path(sys.argv[1]))
decoder = archs.read(checkpoint.config)
body = {role.key: ENCODINGS["int4-32"] for role in decoder.roles() if role.part == "body"}
weights = CheckpointWeights(account(checkpoint, decoder.roles()))
tokens = np.random.default_rng(0).integers(0, decoder.vocab_size, (4, 256)).tolist()
before = peak_rss()
Calibrator(decoder, weights, tokens, body, "gptq", Path(sys.argv[2]), Silent()).run()
print(peak_rss() - before)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose Hessians take most of what calibration takes, as those of large models do."""
    return write_checkpoint(tmp_path_factory.mktemp("wide"), hidden=128, ff=6144, layers=1)


def test_codes_are_chosen_within_what_the_plan_says(wide: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHOOSING, str(wide), str(tmp_path)]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    section = Calibration(text="unused", tokens=1024, sequence=256)
    said = section.memory(archs.read(open_checkpoint(wide).config), "gptq") - RESERVED
    assert tolerances.CALIBRATION_MEMORY * said < taken < said
