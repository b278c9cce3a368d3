#!/bin/sh
# Takes out of a virtual environment what no process of the product opens, then compiles the rest.
# What each line saves is in docs/operations.md (image sizes).
set -eu
site=$(echo "$1"/lib/python3.*/site-packages)
find "$site" -depth -type d -name tests -exec rm -rf {} +
# Java workers, reinforcement learning and language models of Ray; a second copy of ONNX Runtime for C programs (the Python
# module carries its own); headers and sources of extensions.
rm -rf "$site/ray/jars" "$site/ray/rllib" "$site/ray/llm" "$site"/onnxruntime/capi/libonnxruntime.so.* "$site/onnxruntime/transformers" "$site/pyarrow/include" "$site/pyarrow/src"
find "$site" \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.js.map' -o -name '*.css.map' \) -delete
"$1/bin/python" -m compileall -q -j 0 "$site"
