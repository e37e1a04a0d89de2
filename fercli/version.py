"""The version of fercli, in a module that can be imported without the rest of the package."""

__version__ = "0.7.0"
