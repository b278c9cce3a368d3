#!/bin/sh
# Removes the files of a virtual environment that no process of the product opens, then compiles the rest.
#   slim.sh VENV [SINCE]      with SINCE, only files newer than that file are stripped, because the others belong to the layer below
# docs/how-to/scaling.md (image sizes) has the saved size of each part.
set -eu
site=$(echo "$1"/lib/python3.*/site-packages)
find "$site" -depth -type d -name tests -exec rm -rf {} +
# Java workers, reinforcement learning and language models of Ray; a second copy of ONNX Runtime for C programs (the Python
# module has its own); headers and sources of extensions.
rm -rf "$site/ray/jars" "$site/ray/rllib" "$site/ray/llm" "$site"/onnxruntime/capi/libonnxruntime.so.* "$site/onnxruntime/transformers" "$site/pyarrow/include" "$site/pyarrow/src"
find "$site" \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.js.map' -o -name '*.css.map' \) -delete
# Test suites outside folders named `tests`; wheels of pip with which virtualenv creates environments, which this image does not do.
rm -rf "$site/onnx/backend/test" "$site/joblib/test" "$site/sqlalchemy/testing" "$site/virtualenv/seed/wheels/embed"/*.whl
# Arrow over gRPC, which no other library needs; copies of Arrow's libraries with the names for linkers (Python's modules load the name
# with one number).
rm -f "$site"/pyarrow/*flight*
for library in "$site"/pyarrow/libarrow_python*.so; do
    [ ! -e "$library" ] || rm -f "$library" "$library".*.*.*
done
# Debugging information of extensions. Packages with bundled libraries (numpy, scipy, …) stay unchanged, because the tool that bundled the
# libraries changed their layout, and `strip` may break them.
if command -v strip >/dev/null; then
    for package in aiohttp fontTools frozenlist httptools kiwisolver msgpack multidict propcache ray/_private/runtime_env sqlalchemy uvloop wrapt yaml yarl; do
        [ ! -d "$site/$package" ] || find "$site/$package" -name '*.so' ${2:+-cnewer "$2"} -exec strip --strip-debug {} +
    done
fi
"$1/bin/python" -m compileall -q -j 0 "$site"
