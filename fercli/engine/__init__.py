"""Training: one loop, and the run folder that it writes.

- `stages`: ``train-source`` and ``adapt``: read a spec, write a stage folder;
- `loop`: the one training loop;
- `training`: the set-up of a stage: its batches, network and method in one module, optimizer and evaluator;
- `data`: the stores and faces that a stage trains on;
- `network`: the network of a spec, new or from a checkpoint;
- `evaluator`: passes over all faces before an epoch, and the scores after it;
- `predict`: predictions of a network on chosen faces;
- `schedule`: learning rates;
- `averaging`: the moving average of the weights;
- `guards`: losses that are not finite, and out-of-memory errors;
- `safeguards`: the comparison of a source-free adaptation with its starting model;
- `start`: a model from elsewhere as the starting model of a run's adaptations;
- `interrupt`: SIGINT and SIGTERM;
- `acceleration`: precision, the device's libraries, compilation;
- `capture`: a step recorded as one CUDA graph;
- `fabric`: devices and processes;
- `lightning`: the parts of Lightning Fabric that are used;
- `distributed`: several processes that train as one;
- `sharding`: one batch split over several processes;
- `folder`: a stage's folder, and the record that its checkpoints carry;
- `checkpoint`: checkpoints as files;
- `resume`: the training state in a checkpoint, saved and restored;
- `log`: metrics.jsonl and environment.json;
- `released`: checkpoints released by other authors, as trained models;
- `trained`: a trained model, ready for use.
"""
