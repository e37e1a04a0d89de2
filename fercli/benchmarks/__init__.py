"""Measurements that users can repeat: ``fercli bench``.

- `steps`: a step of training or prediction, and its parts;
- `operations`: what a step asks of a device, and where it would be waited for;
- `published`: a step as the published code takes it, to compare with;
- `prepare`: `fercli prepare` beside the face mesh alone;
- `predict`: `fercli predict` beside its parts;
- `face_mesh`: MediaPipe's own face mesh, the yardstick;
- `stores`: prepared stores of noise.
"""
