"""The runs of the example `model_runs` in PyTorch, eager, with random weights: the same shapes, widths and operations.

    python torch_runs.py [--device cuda] [--dtype f32|bf16] [--small] [--times N] [RUN]..

A line of JSON per run, as `model_runs` prints it. Only times mean something.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import torch_video


class Attention(nn.Module):
    """Heads of the DiT: RMS norm on queries and keys, rotary places where there are any."""

    def __init__(self, width, heads, context):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k, self.v = nn.Linear(context, width, bias=False), nn.Linear(context, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def forward(self, x, context=None, rotary=None):
        split = lambda y: y.unflatten(-1, (self.heads, -1))
        context = x if context is None else context
        q, k, v = self.q_norm(split(self.q(x))), self.k_norm(split(self.k(context))), split(self.v(context))
        if rotary is not None:
            q, k = turn(q, *rotary), turn(k, *rotary)
        y = F.scaled_dot_product_attention(*(z.transpose(1, 2) for z in (q, k, v)))
        return self.out(y.transpose(1, 2).flatten(2))


def turn(x, cos, sin):
    """Rotary places, half-split: x [B, N, heads, d], cos and sin [N, 1, d]."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def places(count, width, like):
    angles = torch.arange(count, device=like.device)[:, None] / 10000 ** (
        torch.arange(0, width, 2, device=like.device) / width
    )
    angles = torch.cat((angles, angles), -1)[:, None]
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


class Modulation(nn.Module):
    """Shift, scale and gate of the time, through a narrow middle."""

    def __init__(self, width, rank, count):
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, count * width, bias=False)

    def forward(self, time):
        embedded, added = time
        y = self.up(self.down(F.silu(embedded)))
        return (y + added[..., : y.shape[-1]]).unsqueeze(2).chunk(y.shape[-1] // embedded.shape[-1], -1)


class Block(nn.Module):
    def __init__(self, width, heads, context, rank):
        super().__init__()
        self.modulations = nn.ModuleList(Modulation(width, rank, 3) for _ in range(3))
        self.self_attn, self.cross_attn = Attention(width, heads, width), Attention(width, heads, context)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, x, time, context, rotary):  # x [B, T, N, D]
        parts = (
            lambda y: self.self_attn(y.flatten(1, 2), rotary=rotary).view_as(y),
            lambda y: self.cross_attn(y.flatten(1, 2), context).view_as(y),
            self.mlp,
        )
        for modulation, part in zip(self.modulations, parts):
            shift, scale, gate = modulation(time)
            y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
            x = x + gate * part(y)
        return x


class Dit(nn.Module):
    """Base network and control branch, on patches that are already cut."""

    def __init__(self, width, blocks, control, heads, context, rank, patch, hint):
        super().__init__()
        block = lambda: Block(width, heads, context, rank)
        self.embed, self.embed_ctrl = nn.Linear(patch, width, bias=False), nn.Linear(patch, width, bias=False)
        self.embed_hint = nn.Linear(hint, width, bias=False)
        widths = [width, 16, 16, 32, 32, 96, 96, 256, width]
        self.hint = nn.Sequential(*(m for a, b in zip(widths, widths[1:]) for m in (nn.Linear(a, b), nn.SiLU())))
        self.time = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.SiLU(), nn.Linear(width, 3 * width, bias=False)
        )
        self.blocks = nn.ModuleList(block() for _ in range(blocks))
        self.branch = nn.ModuleList(block() for _ in range(control))
        self.zero = nn.ModuleList(nn.Linear(width, width) for _ in range(control))
        self.last, self.out = Modulation(width, rank, 2), nn.Linear(width, 64, bias=False)

    def forward(self, x, hint, time, context, rotary):
        time = (time, self.time(time))
        y, residuals = self.embed_ctrl(x), []
        for index, (block, zero) in enumerate(zip(self.branch, self.zero)):
            y = block(y, time, context, rotary)
            if index == 0:
                y = y + self.hint(self.embed_hint(hint))
            residuals.append(0.5 * zero(y))
        x = self.embed(x)
        for index, block in enumerate(self.blocks):
            x = block(x, time, context, rotary)
            if index < len(residuals):
                x = x + residuals[index]
        shift, scale = self.last(time)
        return self.out(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


def dit_pass(small, device, dtype):
    width, blocks, control, heads, context, rank = (128, 6, 2, 4, 96, 32) if small else (2048, 28, 3, 16, 1024, 256)
    t, n = (2, 16) if small else (24, 30 * 52)
    dit = Dit(width, blocks, control, heads, context, rank, 72, 68).to(device, dtype)
    noise = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)
    x, hint, time = noise(1, t, n, 72), noise(1, t, n, 68), noise(1, t, width)
    # The context is filled with zero tokens, which take part.
    given, zeros = (32, 0) if small else (92, 420)
    tokens = torch.cat((noise(1, given, context), torch.zeros(1, zeros, context, device=device, dtype=dtype)), 1)
    rotary = places(t * n, width // heads, x)

    @torch.no_grad()
    def once():
        dit(x, hint, time, tokens, rotary)

    return f"{t * n} tokens", once


class DecoderLayer(nn.Module):
    def __init__(self, width, heads, groups, hidden, bias):
        super().__init__()
        size = width // heads
        self.heads, self.groups = heads, groups
        self.q, self.o = nn.Linear(width, width, bias=bias), nn.Linear(width, width, bias=bias)
        self.k, self.v = (nn.Linear(width, groups * size, bias=bias) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x, rotary):
        y = self.first(x)
        q = turn(self.q(y).unflatten(-1, (self.heads, -1)), *rotary).transpose(1, 2)
        k = turn(self.k(y).unflatten(-1, (self.groups, -1)), *rotary).transpose(1, 2)
        v = self.v(y).unflatten(-1, (self.groups, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.groups)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    def __init__(self, vocabulary, width, layers, heads, groups, hidden, bias):
        super().__init__()
        self.size = width // heads
        self.embed, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=False)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, groups, hidden, bias) for _ in range(layers))
        self.norm = nn.RMSNorm(width)

    def forward(self, ids):
        x = self.embed(ids)
        rotary = places(ids.shape[1], self.size, x)
        for layer in self.layers:
            x = layer(x, rotary)
        return self.head(self.norm(x))


def ar_step(small, device, dtype):
    sizes = (128, 4, 4, 2, 352, False) if small else (1024, 24, 16, 16, 2752, True)
    return decoder_step(sizes, 128 if small else 2048, device, dtype)


def decoder_step(sizes, length, device, dtype):
    vocabulary = 1020
    decoder = Decoder(vocabulary, *sizes).to(device, dtype)
    optimizer = torch.optim.AdamW(decoder.parameters(), 1e-4, (0.9, 0.99), 1e-8, 0.1)
    ids = (torch.arange(length, device=device) * 7919 % vocabulary)[None]

    def once():
        logits = decoder(ids)[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()

    return f"1 x {length} ids", once


def encode(model, shape, device, dtype):
    """In pieces of 17 frames, so that a card holds them, without what a stream remembers between them; of 93 frames, one
    is looked at twice, as pieces have one frame and a multiple of four."""
    model, clip = model.to(device, dtype), torch.randn(shape, device=device, dtype=dtype)
    whole, rest = divmod(shape[2], 17)
    pieces = [clip[:, :, 17 * piece : 17 * (piece + 1)] for piece in range(whole)]
    pieces += [clip[:, :, -(rest + 1) :]] if rest else []

    @torch.no_grad()
    def once():
        return [model(piece) for piece in pieces]

    return str(shape), once


def vae_encode(small, device, dtype):
    return None if small else encode(torch_video.vae_encoder(), [1, 3, 93, 480, 832], device, dtype)


def dldm_encode(small, device, dtype):
    return None if small else encode(torch_video.dldm_encoder(), [1, 3, 93, 240, 416], device, dtype)


RUNS = {"vae-encode": vae_encode, "dldm-encode": dldm_encode, "dit-pass": dit_pass, "ar-step": ar_step}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=", ".join(RUNS))
    arguments = parser.parse_args()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    torch.manual_seed(1)
    for run in arguments.runs or RUNS:
        prepared = RUNS[run](arguments.small, arguments.device, dtype)
        if prepared is None:
            print(f"skipped: the tiny {run} has other layers than these; compare.py has the released ones", file=sys.stderr)
            continue
        shape, once = prepared
        seconds = []
        for repeat in range(arguments.times + 1):  # the first is not counted
            began = time.perf_counter()
            once()
            if arguments.device.startswith("cuda"):
                torch.cuda.synchronize()
            if repeat:
                seconds.append(time.perf_counter() - began)
        line = {"run": run, "device": arguments.device, "dtype": arguments.dtype, "shape": shape, "seconds": seconds}
        print(json.dumps(line | {"small": arguments.small}), flush=True)


if __name__ == "__main__":
    main()
