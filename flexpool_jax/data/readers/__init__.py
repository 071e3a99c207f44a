"""Readers: one module for each data set, or for data sets with the same file format.

The function of a reader takes the published files and returns `Contents`, which is then prepared.
The data sets `image_folder` and `npz` are the user's own images, in `dataset.raw_dir`. The function
of `image_folder` returns a `Source` to prepare, and the function of `npz` returns the arrays.
"""
