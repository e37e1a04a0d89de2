"""Synthetic data: procedural faces with the seven expressions, drawn where photographs may not be passed on.

- `fercli.synthetic.render`: one face, or a sample of many, as a pure function of its seeds;
- `fercli.synthetic.domains`: ways of photographing a population, and domains between two of them;
- `fercli.synthetic.action_units`: which muscles an expression moves, and how much;
- `fercli.synthetic.anatomy`: who somebody is, and where the muscles put every contour;
- `fercli.synthetic.drawing`: the contours painted in flat colours;
- `fercli.synthetic.lighting`: the light that makes them round;
- `fercli.synthetic.writers`: faces written in the layouts of real datasets;
- `fercli.synthetic.demo`: the datasets and specs of ``fercli demo``.
"""
