"""An image to an aligned face.

- `extract`: one record to one prepared face, or the reason why there is none;
- `images`: decoding: any image to uint8 RGB;
- `landmarker`: five landmarks, and the retries where none are found;
- `networks`: BlazeFace and the face mesh;
- `network_files`: where the files of these networks are;
- `search`: regions of an image to look in, and boxes;
- `align`: similarity to the template, the released box, local crops;
- `perceptual_hash`: a hash to find a face again by;
- `failures`: failures that may pass, and those of the image itself;
- `quiet`: silence around libraries in C.
"""
