"""Progress bars for terminals and notebooks. All of the package takes `tqdm` from here."""

import warnings

from tqdm import TqdmWarning

# in a notebook without ipywidgets the bar is plain text, which needs no remark
with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
