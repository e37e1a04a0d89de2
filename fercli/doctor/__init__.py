"""Is this machine fit for fercli and for a run spec, and what is missing?

- `checks`: all checks in their order; those of the machine, the spec and its data
- `software`: Python and the libraries, and what is to be done where one cannot be loaded; what a check tells

`software` needs the standard library alone: whatever else is broken, it can say so.
"""
