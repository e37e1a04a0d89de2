"""Methods x targets x seeds: one run folder per seed and grid combination, and one results table.

- `plan`: turns a spec with a ``sweep`` section into one spec per cell;
- `claims`: decides which of several processes, on any machines, does a piece of the work;
- `finished`: recognises finished stages from their folders;
- `devices`: assigns one GPU to each process;
- `run`: trains the cells that are missing;
- `aggregate`: collects the run folders into one results document.
"""
