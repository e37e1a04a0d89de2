"""Measurements that users can repeat: ``fercli bench``.

- `steps`: times a step of training or prediction and its parts;
- `operations`: counts the operations a step launches, and the places where it would wait for the device;
- `published`: a step as the published code does it, for comparison;
- `prepare`: compares `fercli prepare` with the face mesh alone;
- `predict`: compares `fercli predict` with its parts;
- `face_mesh`: MediaPipe's own face mesh, the yardstick;
- `stores`: prepared stores of noise.
"""
