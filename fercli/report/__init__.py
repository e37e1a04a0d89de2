"""Reports: self-contained HTML files from results documents.

- `page`: renders a results document as one file;
- `headline_view`: headline, heads, every row, published figures;
- `coverage_view`: images, time, missing cells, what is left out;
- `analysis_view`: single models: heads, GLPC, calibration, domain gap, failure cases, training curves;
- `drift_view`: whether an adaptation can be trusted;
- `pseudo_view`: pseudo labels;
- `plots`: the page's plots;
- `pictures`: faces embedded in a page.
"""
