"""The quality of prepared datasets: what was found, and duplicate faces.

- `report`: quality.html and quality.json, written beside the stores;
- `numbers`: counts, sizes and poses of a dataset;
- `duplicates`: duplicate faces, in one dataset or in two;
- `pictures`: faces and contact sheets inside the page;
- `view`: what the page shows.
"""
