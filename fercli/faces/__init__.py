"""From an image to an aligned face.

- `extract`: turns one record into one prepared face, or into the reason why there is none;
- `images`: decodes any image to uint8 RGB;
- `landmarker`: finds five landmarks, with retries if there are none at first;
- `networks`: BlazeFace and the face mesh;
- `network_files`: locates or downloads the files of these networks;
- `search`: regions of an image to search in, and boxes;
- `align`: similarity to the template, the released box, local crops;
- `perceptual_hash`: a hash for finding the same face again;
- `failures`: separates temporary failures from faults of the image itself;
- `quiet`: silences C libraries that print to stderr.
"""
