#!/bin/sh
# Collects what the trainer needs beyond a plain CUDA image, as wheels for Python 3.12 on x86-64
# Linux, and the prepared sets, in one folder to carry to a machine without network.
#
#     benchmarks/wheels.sh DIR [DATA_DIR]
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 DIR [DATA_DIR], DATA_DIR holding cifar10/ and tiny_shakespeare/" >&2
    exit 2
fi
dir=$1
here=$(dirname "$0")
python=${PYTHON:-python3}

mkdir -p "$dir"
# pip matches a platform's number exactly, so that the older ones are named too.
"$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$dir" \
    --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 \
    --requirement "$here/wheels.txt"
# Published as source alone; it is pure Python.
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$dir" promise==2.3

if [ $# -eq 2 ]; then
    for name in cifar10 tiny_shakespeare; do
        mkdir -p "$dir/data"
        cp -R "$2/$name" "$dir/data/"
    done
fi
du -sh "$dir"
