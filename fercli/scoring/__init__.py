"""The final score: trained models on prepared faces, to results. Target labels are read here.

- `evaluate`: a run, or one model, to its results document and files;
- `trained_evaluator`: one network that takes each model's weights in turn;
- `results`: one model on one dataset: answers, and the figures that follow;
- `results_files`: results.json, results.csv and the predictions;
- `failure_cases`: the most confident mistakes and the least certain faces;
- `explain`: Grad-CAM, and what each head said.
"""
