"""The quality of prepared datasets: what was found, and which faces are there twice.

- `report`: quality.html and quality.json, written beside the stores;
- `numbers`: counts, sizes and poses of a dataset;
- `duplicates`: faces that are there twice, in one dataset or in two;
- `pictures`: faces and contact sheets inside the page;
- `view`: what the page shows.
"""
