"""From outputs to scores: functions of probabilities, predictions and results. Nothing here runs a network.

`outputs` reads and writes files, and `runs` reads them. All other modules are pure.

- `outputs`: every head's predictions for each face, stored in files;
- `decision`: decision rules that turn the outputs of seven heads into one prediction;
- `metrics`: scores from a confusion matrix;
- `subjects`: the subjects of the scored faces;
- `intervals`: how uncertain a score is;
- `significance`: whether chance alone explains the difference between two models;
- `calibration`: reliability, and temperature scaling;
- `selection`: choosing the epoch without target labels;
- `predictions`: selection rules that use predictions alone;
- `importance_weights`: DEV, the rule that weights source faces by density ratio;
- `drift`: what an adaptation changed, and whether to trust it, without labels;
- `oracle`: the best epoch by the target's own labels: an upper bound, never a result;
- `pseudo_labels`: how many pseudo labels a threshold admits;
- `domain_gap`: the energy distance between the domains, and the t-SNE map;
- `statistics`: means, deviations and tests over several seeds;
- `results_table`: the tables of a run or a sweep;
- `rule_ranking`: how well each selection rule did;
- `runs`: evaluated runs that are to be compared;
- `compare`: a face-by-face comparison of two models;
- `published`: published accuracies.
"""
