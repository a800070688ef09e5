#!/bin/sh
# `make env`: check the machine, create .venv, install WikiLLM with its exact versions. Does nothing when that is done.
# PYTHON=python3.12 picks the interpreter, VENV and CONSTRAINTS another environment (`make test-floor`), EXTRAS=demo,dev pyproject's extras.
# TORCH_INDEX=URL names the index torch comes from. Without it, a machine without an NVIDIA GPU gets a CPU build
# (CUDA's is gigabytes): a wheel that pip finds on disk, or else the one of PyTorch's CPU index.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv} versions=${CONSTRAINTS:-constraints.txt} extras=${EXTRAS:-demo}
say() { printf '%s\n' "$@"; }
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }
py='' apt='' dnf=''
for name in ${PYTHON:-python3.12 python3.11 python3}; do if fits "$name"; then py=$name; break; fi; done
lacks() { say "missing: $1"; apt="$apt $2" dnf="$dnf $3"; }
if [ -z "$py" ]; then
  lacks "Python 3.11 or 3.12 (tried: ${PYTHON:-python3.12 python3.11 python3})" "python3.11 python3.11-venv" python3.11
else
  v=$("$py" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
  "$py" -c 'import venv, ensurepip' 2>/dev/null || lacks "venv for $py" "$v-venv" "$v"
fi
[ -z "$apt" ] || { say "install them, then run make again:" "  apt install$apt" "  or: dnf install$dnf"; exit 3; }

want=$({ pwd; sed '/^\[tool\./,$d' pyproject.toml; cat "$versions"; } | cksum | tr ' ' -)
case "$(cat $venv/installed 2>/dev/null)," in "$want $extras,"*) exit 0 ;; esac # demo,dev holds demo
if ! grep -q " $PWD/$venv\$" $venv/pyvenv.cfg 2>/dev/null; then # not there, or the folder was moved
  say "creating $venv with $("$py" -V) ($(command -v "$py"))"
  "$py" -m venv --clear "$PWD/$venv"
fi
show() { # pip's lines in; progress, errors and the time of downloading and of installing out
  start=$(date +%s) got=''
  while IFS= read -r line; do
    printf '%s\n' "$line" >>$venv/install.log
    case $line in
      *" is ignored: "* | *.metadata*) ;;
      *Downloading* | *"Using cached"* | *"Building wheel"*) say "  ${line##*/}" ;;
      "Installing collected"*) got=$(date +%s); say "  downloaded in $((got - start)) s, installing" ;;
      "Successfully installed"*) say "  installed in $(($(date +%s) - ${got:-$start})) s" ;;
      ERROR* | error*) say "  $line" >&2 ;;
      "pip failed") return 1 ;;
    esac
  done
}
get() { { DS_BUILD_OPS=0 $venv/bin/python -m pip install --no-compile --progress-bar off -c "$versions" "$@" 2>&1 || say "pip failed"; } | show; }
if [ -n "${TORCH_INDEX:-}" ]; then
  say "torch from TORCH_INDEX"
  get --no-deps --index-url "$TORCH_INDEX" torch || { say "TORCH_INDEX gave no torch; log: $venv/install.log"; exit 3; }
elif [ "$(uname -s)" = Linux ] && [ -z "${CUDA_VERSION:-}" ] && ! nvidia-smi -L >/dev/null 2>&1; then # images of CUDA set CUDA_VERSION
  say "no NVIDIA GPU: a CPU build of torch"
  get --no-deps --no-index torch 2>/dev/null || get --no-deps --index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 5 torch 2>/dev/null ||
    say "PyTorch's CPU index does not answer: torch comes from pip's own index, perhaps with gigabytes of CUDA (TORCH_INDEX=URL names another)"
fi
say "WikiLLM and what it needs (log: $venv/install.log)"
get -e ".[$extras]" || { say "the installation failed; its last lines:"; tail -n 15 $venv/install.log; exit 3; }
say "  byte-compiling what a run imports" # and no more: compiling everything is half of pip's time
env -u PYTHONDONTWRITEBYTECODE $venv/bin/python -c 'import deepspeed, swanlab
from transformers import Trainer, Qwen2ForCausalLM, Qwen3ForCausalLM' >/dev/null 2>&1 || true
say "$want $extras" >$venv/installed
say "ready; in this shell: . $venv/bin/activate"
