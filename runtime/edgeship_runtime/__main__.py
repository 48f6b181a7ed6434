"""`python -m edgeship_runtime`: the same command as `edgeship-runtime`."""

from edgeship_runtime.cli import main

raise SystemExit(main())
