"""The version of fercli, where every module may read it without importing the package's front door."""

__version__ = "0.6.0"
