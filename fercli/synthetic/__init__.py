"""Synthetic data: procedural faces with the seven expressions, for use where photographs may not be redistributed.

- `render`: one face, or a sample of many, as a pure function of its seeds;
- `domains`: ways of photographing a population, and interpolation between two domains;
- `action_units`: which muscles an expression moves, and how much;
- `anatomy`: a person's proportions, and where the muscles put every contour;
- `drawing`: paints the contours in flat colours;
- `lighting`: adds the light that makes them look round;
- `writers`: writes faces in the layouts of real datasets;
- `demo`: the datasets and specs of ``fercli demo``.
"""
