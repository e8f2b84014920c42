"""Version of medunet, apart from everything else, so that every module may know it."""

__version__ = "0.1.0"
