"""Synthetic data: procedural faces with the seven expressions, drawn where photographs may not be passed on.

- `render`: one face, or a sample of many, as a pure function of its seeds;
- `domains`: ways of photographing a population, and domains between two of them;
- `action_units`: which muscles an expression moves, and how much;
- `anatomy`: who somebody is, and where the muscles put every contour;
- `drawing`: the contours painted in flat colours;
- `lighting`: the light that makes them round;
- `writers`: faces written in the layouts of real datasets;
- `demo`: the datasets and specs of ``fercli demo``.
"""
