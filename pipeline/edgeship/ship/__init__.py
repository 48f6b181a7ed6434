"""Getting an artifact onto a board: bundles, transports, remote validation and its reports."""
