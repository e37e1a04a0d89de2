"""Methods x targets x seeds, in run folders of their own and one table.

- `plan`: from a spec with a ``sweep`` section to one spec a cell;
- `run`: trains the cells that are missing;
- `aggregate`: the run folders to one results document.
"""
