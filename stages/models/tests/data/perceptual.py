"""Records the perceptual distance as PyTorch computes it: `python3 perceptual.py` writes perceptual.safetensors beside it.

The network is torchvision's VGG-16 feature list with narrow layers and random weights, as the file has to be small; its
modules are PyTorch's own (convolution, ReLU, pooling), in f64. Frames have an odd size, which pooling cuts.
"""

import json
import struct
from pathlib import Path

import torch
from torch import nn

WIDTHS = [[4, 4], [5, 6], [6, 7, 8], [8, 8, 8], [8, 8, 6]]
SHARES = [1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5]
SHIFT, SCALE = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]], dtype=torch.float64)[:, None, :, None, None]


def network():
    """One list of modules, numbered as torchvision numbers them, and where each level ends."""
    modules, ends, inputs = [], [], 3
    for level in WIDTHS:
        if modules:
            modules.append(nn.MaxPool2d(2, 2))
        for width in level:
            conv = nn.Conv2d(inputs, width, 3, padding=1)
            nn.init.normal_(conv.weight, std=(2 / (9 * inputs)) ** 0.5)
            nn.init.normal_(conv.bias, std=0.05)
            modules += [conv, nn.ReLU()]
            inputs = width
        ends.append(len(modules))
    return nn.Sequential(*modules).double(), ends


def distance(features, ends, x, y):
    images = [(clip.transpose(1, 2).flatten(0, 1) - SHIFT[0]) / SCALE[0] for clip in (x, y)]
    total, start = 0.0, 0
    for end, share in zip(ends, SHARES):
        images = [features[start:end](image) for image in images]
        start = end
        # A mean over each frame's values, then over frames.
        total = total + share * (images[0] - images[1]).abs().mean(dim=(1, 2, 3)).mean()
    return total


def write(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        values = tensor.detach().float().contiguous()
        raw = struct.pack(f"<{values.numel()}f", *values.flatten().tolist())
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


torch.manual_seed(5)
features, ends = network()
# What is written is f32, so that is what the distance is of.
for parameter in features.parameters():
    parameter.data = parameter.data.float().double()
x, y = (torch.rand(2, 2, 3, 3, 34, 37) * 2 - 1).double()
y.requires_grad_()
value = distance(features, ends, x, y)
value.backward()
tensors = {f"features.{name}": weight for name, weight in features.state_dict().items()}
tensors |= {"in.x": x, "in.y": y, "out.distance": value[None], "grad.y": y.grad}
write(Path(__file__).with_suffix(".safetensors"), tensors)
