"""Makes the samples beside it; run with numpy 2 as `make.py`, with numpy 1 as `make.py 1`, with torch as `make.py torch`."""

import pickle
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
a = np.arange(6).reshape(2, 3)
values = {code: a.astype(code) for code in "f2 f4 f8 u1 i1 u2 i2 u4 i4 u8 i8".split()}
values |= {
    "big_f4": a.astype(">f4"),
    "big_i2": a.astype(">i2"),
    "column_major": np.asfortranarray(a.astype("f4")),
    "big_column_major": np.asfortranarray(a.astype(">i4")),
    "permuted": np.arange(24, dtype="f4").reshape(2, 3, 4).transpose(1, 0, 2),
    "bool": np.array([True, False]),
    "half": np.array([1.5, -65504, 2**-24, np.inf, np.nan], "f2"),
    "empty": np.zeros((0, 1024), "f4"),
    "no_axes": np.array(7.0),
    "scalars": [np.float64(0.1), np.float32(0.5), np.int64(-3), np.bool_(True)],
    "set": {5},
}
if sys.argv[1:] == ["torch"]:
    import torch

    tensors = {
        "obs_images": torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2),
        "turned": torch.arange(6, dtype=torch.float32).reshape(2, 3).T[1:],
        "half": torch.tensor([1.5, -2], dtype=torch.bfloat16),
    }
    for protocol in (2, 5):
        (FOLDER / f"torch.{protocol}.pickle").write_bytes(pickle.dumps(tensors, protocol))
elif sys.argv[1:] == ["1"]:
    (FOLDER / "numpy1.5.pickle").write_bytes(pickle.dumps(values, 5))
else:
    for protocol in (0, 2, 4, 5):
        (FOLDER / f"numpy.{protocol}.pickle").write_bytes(pickle.dumps(values, protocol))
    plain = {"n": None, "t": (True, False), "i": [1, -2, 70000, 2**40], "f": 0.5, "s": "ü\n", "b": b"\x00\xff"}
    for protocol in range(6):
        (FOLDER / f"plain.{protocol}.pickle").write_bytes(pickle.dumps(plain, protocol))
