"""The quality of prepared datasets: detection results and duplicate faces.

- `report`: quality.html and quality.json, written next to the stores;
- `numbers`: counts, scores and poses of a dataset;
- `duplicates`: duplicate faces within a dataset or between two;
- `pictures`: faces and contact sheets inside the page;
- `view`: the contents of the page.
"""
