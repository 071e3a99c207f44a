"""One module for each data set: a function from its files to `Contents`, which is then prepared.

`image_folder` and `npz` hold a user's own images, in `dataset.raw_dir`: their functions return what
is to be prepared, or the arrays themselves.
"""
