"""The final score: evaluates trained models on prepared faces. Target labels are read here.

- `evaluate`: scores a run, or one model, and writes its results document and files;
- `trained_evaluator`: the outputs of trained models, computed once and stored;
- `results`: predictions and scores of one model on one dataset;
- `results_files`: results.json, results.csv and the predictions;
- `failure_cases`: the most confident mistakes and the least certain faces;
- `explain`: Grad-CAM, and the prediction of each head.
"""
