"""Numbers to pages: one self-contained HTML file for a run (`run`), for a sweep (`sweep`)."""
