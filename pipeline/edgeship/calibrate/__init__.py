"""Calibration: text, the statistics it gives of each layer's inputs, and codes chosen with them."""

from edgeship.calibrate.statistics import Statistics, statistics

__all__ = ["Statistics", "statistics"]
