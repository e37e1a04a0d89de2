"""Outputs to numbers: functions of probabilities, answers and results. Nothing here runs a network.

`outputs` and `runs` read (and `outputs` writes) files; all others are pure.

- `outputs`: what every head says of each face, in files;
- `decision`: from seven heads to one answer;
- `metrics`: scores from a confusion matrix;
- `subjects`: who is on the faces;
- `intervals`: how uncertain a score is;
- `significance`: whether chance alone makes one of two models so much better;
- `calibration`: reliability, and temperature scaling;
- `selection`: choosing the epoch without target labels;
- `predictions`: selection rules that look at predictions alone;
- `importance_weights`: DEV, the rule that weighs source faces by density ratio;
- `drift`: what an adaptation changed, and whether to trust it, without labels;
- `oracle`: the best epoch by the target's own labels: an upper bound, never a result;
- `pseudo_labels`: how many pseudo labels a threshold admits;
- `domain_gap`: the energy distance of the domains, and the t-SNE map;
- `statistics`: what several seeds allow to be said;
- `results_table`: the tables of a run or a sweep;
- `rule_ranking`: how well each selection rule did;
- `runs`: evaluated runs, to be compared;
- `compare`: two models face by face;
- `published`: published accuracies.
"""
