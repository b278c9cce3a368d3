#!/bin/sh
# Removes the files of a virtual environment that no process of the product opens, then compiles the rest.
#   slim.sh VENV [SINCE]      with SINCE only files that are newer than that one are stripped: the others belong to the layer below
# docs/how-to/scaling.md (image sizes) says how much each part saves.
set -eu
site=$(echo "$1"/lib/python3.*/site-packages)
find "$site" -depth -type d -name tests -exec rm -rf {} +
# Java workers, reinforcement learning and language models of Ray; a second copy of ONNX Runtime for C programs (the Python
# module carries its own); headers and sources of extensions.
rm -rf "$site/ray/jars" "$site/ray/rllib" "$site/ray/llm" "$site"/onnxruntime/capi/libonnxruntime.so.* "$site/onnxruntime/transformers" "$site/pyarrow/include" "$site/pyarrow/src"
find "$site" \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.js.map' -o -name '*.css.map' \) -delete
# Test suites that are not in a folder `tests`; wheels of pip from which virtualenv makes environments, which nothing here does.
rm -rf "$site/onnx/backend/test" "$site/joblib/test" "$site/sqlalchemy/testing" "$site/virtualenv/seed/wheels/embed"/*.whl
# Arrow over gRPC, which nothing else is linked with; copies of Arrow's own libraries under the names that linkers want (Python's
# modules load them by the name with one number).
rm -f "$site"/pyarrow/*flight*
for library in "$site"/pyarrow/libarrow_python*.so; do
    [ ! -e "$library" ] || rm -f "$library" "$library".*.*.*
done
# Debugging information of extensions that were compiled with it. Those that bring libraries of their own (numpy, scipy, …) are left
# alone: the tool that put their libraries beside them changed their layout, and `strip` may break that.
if command -v strip >/dev/null; then
    for package in aiohttp fontTools frozenlist httptools kiwisolver msgpack multidict propcache ray/_private/runtime_env sqlalchemy uvloop wrapt yaml yarl; do
        [ ! -d "$site/$package" ] || find "$site/$package" -name '*.so' ${2:+-cnewer "$2"} -exec strip --strip-debug {} +
    done
fi
"$1/bin/python" -m compileall -q -j 0 "$site"
