#!/usr/bin/env bash
# All that a machine with a CUDA device has to tell, in 8 minutes after the build: the kernels' agreement with the CPU, their
# benches, and the models at released sizes beside PyTorch on the same card, turn by turn. Writes kernels/benches/RESULTS.md.
# Without a CUDA device it does the same on the CPU with small models, and says so.
#
#   kernels/benches/gpu.sh                     VW2_PYTHON names a Python with PyTorch; without one, ours stands alone
#   VW2_MINUTES=20 kernels/benches/gpu.sh      more time for the same
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${VW2_PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say() { echo "==> $*"; }
skip() { say "skipped: $*"; echo "$*" >>"$scratch/skipped"; }
touch "$scratch/skipped" "$scratch/benches" "$scratch/runs" "$scratch/agreement"

features=() device=cpu small=(--small)
if nvidia-smi -L >/dev/null 2>&1; then
  features=(--features cuda) device=cuda:0 small=()
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1 >"$scratch/card"
  # Kernels are compiled on the spot: by a toolkit, or by NVIDIA's packages for Python.
  if [ -z "${CUDA_PATH:-}" ] && [ ! -d /usr/local/cuda ]; then
    CUDA_PATH=$("$python" -c 'import glob, site; print((glob.glob(site.getsitepackages()[0] + "/nvidia/cu13") or [""])[0])')
    export CUDA_PATH LD_LIBRARY_PATH="$CUDA_PATH/lib:${LD_LIBRARY_PATH:-}"
  fi
else
  skip "no CUDA device: everything runs on the CPU, models at small sizes"
  grep -m1 'model name' /proc/cpuinfo 2>/dev/null | cut -d: -f2 | xargs >"$scratch/card" || echo CPU >"$scratch/card"
fi
torch=yes
"$python" -c 'import torch' 2>/dev/null || { torch=; skip "no PyTorch in $python: no comparison"; }
if [ -n "$torch" ] && [ "$device" != cpu ] && ! "$python" -c 'import torch; torch.zeros(1).cuda()' 2>/dev/null; then
  torch= && skip "PyTorch does not see the CUDA device: no comparison"
fi

say "build"
cargo test -q -p vw2-kernels "${features[@]}" --lib --no-run
cargo bench -q -p vw2-kernels "${features[@]}" --profile dev --bench kernels --no-run
cargo build -q -p vw2-models "${features[@]}" --example model_runs --example models_agree
examples=${CARGO_TARGET_DIR:-target}/debug/examples
runs=$examples/model_runs

began=$SECONDS
limit=$((60 * ${VW2_MINUTES:-8}))
# name, file, command: what the command says goes into the file, too. No step takes the time of those after it.
step() {
  local name=$1 file=$scratch/$2 left=$((limit - (SECONDS - began)))
  shift 2
  [ "$left" -gt 5 ] || { skip "$name: no time left"; return 0; }
  say "$name"
  timeout "$left" "$@" 2>&1 | tee -a "$file" || skip "$name: failed, or its time was over after $((SECONDS - began)) s"
}

[ "$device" = cpu ] || export VW2_REQUIRE=cuda
step "agreement with the CPU and with f64" agreement cargo test -q -p vw2-kernels "${features[@]}" --lib check::
[ "$device" = cpu ] || step "models beside the CPU" models "$examples/models_agree" "$device"
for round in 1 2; do
  for run in vae-encode dldm-encode dit-pass ar-step; do
    for dtype in f32 $([ "$device" = cpu ] || [ "$run" = ar-step ] || echo bf16); do
      step "$run, ours $dtype, round $round" runs \
        "$runs" --device "$device" $([ "$dtype" = f32 ] || echo --bf16) "${small[@]}" --times 1 "$run"
    done
    [ -n "$torch" ] || continue
    for dtype in f32 $([ "$device" = cpu ] || echo bf16); do
      step "$run, PyTorch $dtype, round $round" runs \
        "$python" kernels/benches/torch_runs.py --device "${device%%:*}" --dtype "$dtype" "${small[@]}" --times 1 "$run"
    done
  done
done
# Without a card, the sizes by which the CPU is judged, too.
if [ "$device" = cpu ] && [ -n "$torch" ]; then
  step "ours beside PyTorch, in turns" turns "$python" kernels/benches/compare.py --turns 5
fi
step "benches of all kernels" benches \
  cargo bench -q -p vw2-kernels "${features[@]}" --profile dev --bench kernels -- --quick "on $device"

say "kernels/benches/RESULTS.md, after $((SECONDS - began)) s"
python3 kernels/benches/results.py "$scratch" >kernels/benches/RESULTS.md
cat kernels/benches/RESULTS.md
