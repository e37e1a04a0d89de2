"""A trained model to take away: ONNX and torch.export, checked, with a model card."""
