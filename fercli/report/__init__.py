"""Numbers to pages: self-contained HTML files.

- `run`: the page of a run;
- `sweep`: the page, tables and CSV of a sweep;
- `run_view`: what a run's page shows;
- `analysis_view`: its calibration, domain gap and failure cases;
- `headline_view`: its headline;
- `pseudo_view`: its pseudo labels;
- `left_out`: what it does not show, and why;
- `sweep_view`: what a sweep's page shows;
- `charts`: the larger plots;
- `plots`: the small plots;
- `pictures`: faces inside a page;
- `frame`: title, date, spec and environment of every page;
- `page`: a template to one file.
"""
