"""Measurements that users can repeat: ``fercli bench``."""
