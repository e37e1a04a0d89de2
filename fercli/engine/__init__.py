"""Training: one loop, and the run folder that it leaves.

- `stages`: ``train-source`` and ``adapt``: a spec in, a filled stage folder out;
- `loop`: the one training loop;
- `training`: a stage set up: its batches, network and method in one module, optimizer and evaluator;
- `data`: the stores and faces that a stage trains on;
- `network`: the network of a spec, new or from a checkpoint;
- `evaluator`: what is computed over all faces before an epoch, and the scores after it;
- `predict`: a network over chosen faces;
- `schedule`: learning rates;
- `averaging`: the moving average of the weights;
- `guards`: losses that are not finite, and too little memory;
- `safeguards`: what an adaptation without a source is measured by: its start;
- `start`: a model from elsewhere as the one that a run's adaptations begin with;
- `interrupt`: SIGINT and SIGTERM;
- `acceleration`: precision, libraries of the device, compilation;
- `capture`: a step recorded as one CUDA graph;
- `fabric`: devices and processes;
- `lightning`: what is used of Lightning Fabric;
- `distributed`: several processes that train as one;
- `sharding`: one batch over several processes;
- `folder`: a stage's folder, and what its checkpoints say of themselves;
- `checkpoint`: checkpoints as files;
- `resume`: what a checkpoint of training holds, written and taken up again;
- `log`: metrics.jsonl and environment.json;
- `released`: checkpoints that other people released, as trained models;
- `trained`: a trained model, ready for use.
"""
