"""Methods x targets x seeds, in run folders of their own and one table.

- `plan`: from a spec with a ``sweep`` section to one spec a cell;
- `claims`: who of several processes, on any machines, does a piece of the work;
- `finished`: what is done already, told by its folder;
- `devices`: one GPU a process;
- `run`: trains the cells that are missing;
- `aggregate`: the run folders to one results document.
"""
