"""Writes a trained model to files that run without fercli.

- `write`: `fercli export`: traces, checks and writes a model;
- `graph`: from a prepared face to a prediction in one module;
- `formats`: ONNX and torch.export;
- `check`: compares the file with the model;
- `card`: the model card;
- `snippets`: the code in the card;
- `quiet`: silences torch's exporters;
- `weights`: `fercli weights export`: fercli's checkpoints in the formats of other code.
"""
