"""Our times over PyTorch's on the CPU, f32: the same shapes, in turns in one call, so that a busy machine slows both.

    python compare.py [--turns N] [--threads N] [WORK]..

Prints ratios of the least and of the middle time: below 1, ours is faster. Builds and runs the example `turns`.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

import torch_runs
import torch_video

ROOT = pathlib.Path(__file__).parents[2]


def conv3d():
    x, weight, bias = torch.randn(1, 96, 7, 120, 160), torch.randn(96, 96, 3, 3, 3), torch.randn(96)
    return lambda: F.conv3d(x, weight, bias, padding=(0, 1, 1))


def vae_encode():
    model, clip = torch_video.vae_encoder(), torch.randn(1, 3, 5, 240, 320)
    return lambda: model(clip)


def dldm_encode():
    model, clip = torch_video.dldm_encoder(), torch.randn(1, 3, 17, 240, 416)
    return lambda: model(clip)


def attention():
    q, k, v = (torch.randn(1, 16, 2048, 128) for _ in range(3))
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)


@torch.enable_grad()
def attention_step():
    q, k, v = (torch.randn(1, 16, 2048, 128, requires_grad=True) for _ in range(3))

    @torch.enable_grad()
    def once():
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(y.square().mean(), (q, k, v))

    return once


@torch.enable_grad()
def ar_step():
    _, once = torch_runs.decoder_step((768, 12, 12, 12, 2624, False), 512, "cpu", torch.float32)
    return torch.enable_grad()(once)


WORKS = {
    "conv3d": conv3d,
    "vae-encode": vae_encode,
    "dldm-encode": dldm_encode,
    "attention": attention,
    "attention-step": attention_step,
    "ar-step": ar_step,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("works", nargs="*", metavar="WORK", help=", ".join(WORKS))
    arguments = parser.parse_args()
    unknown = set(arguments.works) - set(WORKS)
    if unknown:
        parser.error(f"no work is called {', '.join(sorted(unknown))}; there are {', '.join(WORKS)}")
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    subprocess.run(["cargo", "build", "-q", "-p", "vw2-models", "--example", "turns"], cwd=ROOT, check=True)
    program = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug/examples/turns"
    environment = os.environ | {"RAYON_NUM_THREADS": str(arguments.threads)}
    ours = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    for name in arguments.works or WORKS:
        once = WORKS[name]()
        once()
        times = []
        for _ in range(arguments.turns):
            ours.stdin.write(name + "\n")
            ours.stdin.flush()
            mine = float(ours.stdout.readline())
            began = time.perf_counter()
            once()
            times.append((mine, time.perf_counter() - began))
        least, middle = ([pick(column) for column in zip(*times)] for pick in (min, statistics.median))
        print(f"{name}: least {least[0] / least[1]:.2f}, middle {middle[0] / middle[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
