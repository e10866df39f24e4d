#!/usr/bin/env bash
# Converts a model on one machine of Hugging Face Jobs and uploads the result. Machines there share no file system, so
# this is the whole conversion in one job, straight from the hub; the disk holds the result and three shards.
#
#   HF_TOKEN=... IMAGE=me/requant:latest hf-jobs.sh org/model q4_k_m me/model-GGUF
#
# The image holds requant and hf (pip install huggingface_hub). `requant plan org/model --to q4_k_m` shows the disk and
# memory that a flavor must have.
set -euo pipefail
model=$1 format=$2 repository=$3
output=/tmp/result/${model##*/}-${format^^}.gguf

exec hf jobs run --flavor "${FLAVOR:-cpu-xl}" --timeout 12h --secrets HF_TOKEN "${IMAGE:?an image with requant and hf}" \
    bash -c "mkdir -p /tmp/result && requant convert '$model' --to '$format' -o '$output' --job 1/1 && hf upload '$repository' /tmp/result"
