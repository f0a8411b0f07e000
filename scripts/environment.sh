#!/usr/bin/env bash
# Makes this clone's virtual environment .venv, once, with the package and its tools in it, and puts it on the PATH.
# To be sourced. PYTHON names another interpreter than python3, TORCH another build of torch.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

install_environment() {
    local pip=("$root/.venv/bin/python" -m pip --disable-pip-version-check --quiet --quiet install)
    [ -x "$root/.venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$root/.venv"
    echo "environment: 1/3 torch (a minute or a few, as the network allows)"
    "${pip[@]}" --upgrade pip "setuptools>=77" wheel
    # fairseq comes as source: what it is built against must be there first, and build isolation would fetch it twice.
    "${pip[@]}" "${TORCH:-torch==2.13.0}" "cython>=3" "numpy>=2.4,<3"
    echo "environment: 2/3 fairseq, built from source (about 2 minutes)"
    "${pip[@]}" --no-build-isolation "fairseq-fixed==0.12.3.1"
    echo "environment: 3/3 moe_nmt and its other requirements (about a minute)"
    "${pip[@]}" --no-build-isolation --editable "$root[dev]"
    touch "$root/.venv/.complete"
}

if [ "$root/setup.py" -nt "$root/.venv/.complete" ]; then
    install_environment
fi
export PATH="$root/.venv/bin:$PATH" PYTHON="$root/.venv/bin/python"
