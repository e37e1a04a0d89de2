"""The quality of prepared datasets: what was found, and which faces are there twice (`report.write_quality`)."""
