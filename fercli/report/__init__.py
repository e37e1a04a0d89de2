"""Numbers to pages: self-contained HTML files.

- `page`: a results document to one file;
- `headline_view`: its headline, heads, every row, published figures;
- `coverage_view`: images, time, missing cells, what is left out;
- `analysis_view`: single models: heads, GLPC, calibration, domain gap, failure cases, training curves;
- `drift_view`: whether an adaptation can be trusted;
- `pseudo_view`: pseudo labels;
- `plots`: its plots;
- `pictures`: faces inside a page.
"""
