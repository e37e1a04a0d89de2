"""fercli: cross-domain facial expression recognition, from photographs to an adapted model."""

__version__ = "0.1.0"
