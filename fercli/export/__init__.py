"""A trained model as files that run without fercli.

- `write`: `fercli export`: traced, checked, written;
- `graph`: from a prepared face to an answer in one module;
- `formats`: ONNX and torch.export;
- `check`: the file against the model;
- `card`: the model card;
- `snippets`: the card's code;
- `quiet`: silence around torch's exporters;
- `weights`: `fercli weights export`: our checkpoints in the names of other code.
"""
