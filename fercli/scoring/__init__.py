"""The final score: trained models on prepared faces, to results. Target labels are read here.

- `evaluate`: a run, or one model, to its results document and files;
- `trained_evaluator`: the outputs of trained models, computed once and kept;
- `results`: one model on one dataset: answers, and the figures that follow;
- `results_files`: results.json, results.csv and the predictions;
- `failure_cases`: the most confident mistakes and the least certain faces;
- `explain`: Grad-CAM, and what each head said.
"""
