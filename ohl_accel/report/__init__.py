"""The report page of a run and the gallery of a policy: `python -m ohl_accel.report`.

Both are one HTML file each that needs no network: `read` checks what a run left, `charts` and `heatmaps`
draw it, `examples` and `gallery` apply operations to images, `page` puts it together, `write` saves it.
"""
