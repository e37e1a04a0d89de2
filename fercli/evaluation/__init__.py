"""Trained networks to numbers: decision rules, metrics, label-free selection, sweeps."""
