"""The encoders of the VAE and of the dLDM in PyTorch, eager, with random weights: the same widths and operations as ours."""

import torch
import torch.nn.functional as F
from torch import nn


class Causal(nn.Conv3d):
    """Frames in front are zeros, or copies of the first; height and width keep their size."""

    def __init__(self, inputs, outputs, kernel, repeats=False):
        super().__init__(inputs, outputs, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))
        self.repeats = repeats

    def forward(self, x):
        front = self.kernel_size[0] - 1
        if front and self.repeats:
            x = torch.cat((x[:, :, :1].expand(-1, -1, front, -1, -1), x), 2)
        elif front:
            x = F.pad(x, (0, 0, 0, 0, front, 0))
        return super().forward(x)


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, 1, 1, 1))

    def forward(self, x):
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma


class FrameNorm(nn.GroupNorm):
    """Statistics of each frame."""

    def __init__(self, width):
        super().__init__(1, width, 1e-6)

    def forward(self, x):
        b, c, t, h, w = x.shape
        return super().forward(x.transpose(1, 2).reshape(b * t, c, h, w)).view(b, t, c, h, w).transpose(1, 2)


class Residual(nn.Module):
    def __init__(self, norm, conv, inputs, outputs):
        super().__init__()
        self.part = nn.Sequential(
            norm(inputs), nn.SiLU(), conv(inputs, outputs), norm(outputs), nn.SiLU(), conv(outputs, outputs)
        )
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.part(x)


class Attention(nn.Module):
    """One head, within each frame or over the frames at each position."""

    def __init__(self, norm, width, over_time=False):
        super().__init__()
        self.norm, self.qkv, self.out = norm(width), nn.Conv3d(width, 3 * width, 1), nn.Conv3d(width, width, 1)
        self.over_time = over_time

    def forward(self, x):
        b, c, t, h, w = x.shape
        order = (0, 3, 4, 2, 1) if self.over_time else (0, 2, 3, 4, 1)
        shape = (b * h * w, t, c) if self.over_time else (b * t, h * w, c)
        q, k, v = (part.permute(order).reshape(shape) for part in self.qkv(self.norm(x)).chunk(3, 1))
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=self.over_time)
        y = y.view(b, h, w, t, c).permute(0, 4, 3, 1, 2) if self.over_time else y.view(b, t, h, w, c).permute(0, 4, 1, 2, 3)
        return x + self.out(y)


class Down(nn.Module):
    """Halves space, and time after the first frame where asked."""

    def __init__(self, width, time):
        super().__init__()
        self.space = nn.Conv2d(width, width, 3, 2)
        self.time = nn.Conv3d(width, width, (3, 1, 1), (2, 1, 1)) if time else None

    def forward(self, x):
        b, c, t, h, w = x.shape
        y = self.space(F.pad(x.transpose(1, 2).reshape(b * t, c, h, w), (0, 1, 0, 1)))
        x = y.view(b, t, c, h // 2, w // 2).transpose(1, 2)
        return x if self.time is None or t < 3 else torch.cat((x[:, :, :1], self.time(x)), 2)


def vae_encoder(dim=96, z=16):
    conv = lambda inputs, outputs: Causal(inputs, outputs, (3, 3, 3))
    residual = lambda inputs, outputs: Residual(RmsNorm, conv, inputs, outputs)
    layers, width = [conv(3, dim)], dim
    for level, mult in enumerate((1, 2, 4, 4)):
        for _ in range(2):
            layers.append(residual(width, dim * mult))
            width = dim * mult
        if level < 3:
            layers.append(Down(width, level > 0))
    layers += [residual(width, width), Attention(RmsNorm, width), residual(width, width), RmsNorm(width), nn.SiLU()]
    return nn.Sequential(*layers, conv(width, 2 * z), nn.Conv3d(2 * z, 2 * z, 1))


class Halve(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.out = nn.Conv3d(width, width, (1, 3, 3), (1, 2, 2)), nn.Conv3d(width, width, 1)

    def forward(self, x):
        return self.out(self.conv(F.pad(x, (0, 1, 0, 1))) + F.avg_pool3d(x, (1, 2, 2)))


class Haar(nn.Module):
    """Patches of 4 x 4 x 4 pixels as one product."""

    def __init__(self):
        super().__init__()
        self.bands = nn.Parameter(torch.randn(64, 64) / 8)

    def forward(self, x):
        x = torch.cat((x[:, :, :1].expand(-1, -1, 3, -1, -1), x), 2)
        b, c, t, h, w = x.shape
        x = x.view(b, c, t // 4, 4, h // 4, 4, w // 4, 4).permute(0, 2, 4, 6, 1, 3, 5, 7)
        y = x.reshape(b, t // 4, h // 4, w // 4, c, 64) @ self.bands
        return y.transpose(-1, -2).flatten(4).permute(0, 4, 1, 2, 3).contiguous()


def dldm_encoder(channels=128):
    """Without the Q-Former, about a fiftieth of the work."""
    conv = lambda inputs, outputs: nn.Sequential(
        Causal(inputs, outputs, (1, 3, 3)), Causal(outputs, outputs, (3, 1, 1), repeats=True)
    )
    residual = lambda inputs, outputs: Residual(FrameNorm, conv, inputs, outputs)
    layers, width = [Haar(), conv(192, channels)], channels
    for level, mult in enumerate((2, 4, 4)):
        for _ in range(2):
            layers.append(residual(width, channels * mult))
            width = channels * mult
        if level < 2:
            layers.append(Halve(width))
    layers += [residual(width, width), Attention(FrameNorm, width), Attention(FrameNorm, width, over_time=True)]
    return nn.Sequential(*layers, residual(width, width), FrameNorm(width), nn.SiLU())
