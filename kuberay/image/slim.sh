#!/bin/sh
# Removes the files of a virtual environment that no process of the product opens, then compiles the rest.
# docs/operations.md (image sizes) says how much each line saves.
set -eu
site=$(echo "$1"/lib/python3.*/site-packages)
find "$site" -depth -type d -name tests -exec rm -rf {} +
# Java workers, reinforcement learning and language models of Ray; a second copy of ONNX Runtime for C programs (the Python
# module carries its own); headers and sources of extensions.
rm -rf "$site/ray/jars" "$site/ray/rllib" "$site/ray/llm" "$site"/onnxruntime/capi/libonnxruntime.so.* "$site/onnxruntime/transformers" "$site/pyarrow/include" "$site/pyarrow/src"
find "$site" \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.js.map' -o -name '*.css.map' \) -delete
"$1/bin/python" -m compileall -q -j 0 "$site"
