"""edgeship: one recipe in, one artifact out, accepted on the board it will run on."""

__version__ = "0.1.0"
