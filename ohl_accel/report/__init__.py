"""The report page of a run and the gallery of a policy: `python -m ohl_accel.report`.

Each is one HTML file that works offline: `read` checks the files of a run, `charts` and `heatmaps` draw them,
`examples` and `gallery` apply operations to images, `page` assembles the page, `write` saves it.
"""
