# Images from one file:
#   docker build --target serve -t iris-api:latest .     the API: Ray, FastAPI, the model's libraries
#   docker build --target train -t iris-train:latest .   the same plus training and the MLflow server
# Two more hold XGBoost, LightGBM and CatBoost besides: for models that have no ONNX form, and to train them. They also read tables as
# Arrow and Parquet over HTTP.
#   docker build --target serve-boost -t iris-api:boost .
#   docker build --target train-boost -t iris-train:boost .
# All run as uid 10001 and write only to /tmp (and to the model folder when training).

# The release workflow resolves the tag and builds from the digest; it records both as labels of the images. For the same content again:
#   docker build --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:… .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin

# The environment of the API, from the lock alone.
FROM base AS serve-environment
COPY requirements/serve.txt /build/
COPY kuberay/image/slim.sh /build/
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils  # strip, for slim.sh
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --require-hashes --no-deps --no-compile --only-binary :all: -r /build/serve.txt \
    && sh /build/slim.sh /opt/venv

# What training adds to it, as a folder of its own: the train image is the serve image plus one layer.
FROM serve-environment AS train-environment
COPY requirements/train.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    touch /build/before \
    && pip --python /opt/venv/bin/python install --require-hashes --no-deps --no-compile --only-binary :all: -r /build/train.txt \
    && sh /build/slim.sh /opt/venv /build/before \
    && /opt/venv/bin/python -c "import matplotlib.pyplot, mlflow.server, mlflow.sklearn, pyarrow.dataset, pyarrow.fs, ray.data, skl2onnx" \
    && mkdir /added && cd / && find opt/venv -cnewer /build/before ! -type d -print0 | tar --null -T - -cf - | tar -xf - -C /added

# What the libraries of boosters add to it, as a folder of its own.
FROM serve-environment AS boost-environment
COPY requirements/serve-boost.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    touch /build/before \
    && pip --python /opt/venv/bin/python install --require-hashes --no-deps --no-compile --only-binary :all: -r /build/serve-boost.txt \
    && sh /build/slim.sh /opt/venv /build/before \
    && /opt/venv/bin/python -c "import catboost, lightgbm, pyarrow.parquet, xgboost" \
    && mkdir /added && cd / && find opt/venv -cnewer /build/before ! -type d -print0 | tar --null -T - -cf - | tar -xf - -C /added

FROM base AS serve
RUN groupadd --gid 10001 iris \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin iris \
    && install -d -o 10001 -g 10001 /app /app/models
COPY --from=serve-environment /opt/venv /opt/venv
WORKDIR /app
COPY serve_app /app/serve_app
RUN python -m compileall -q /app \
    && printf '#!/opt/venv/bin/python\nimport sys\nfrom serve_app.cli import main\nsys.exit(main())\n' > /opt/venv/bin/iris-api \
    && chmod 755 /opt/venv/bin/iris-api
ENV HOME=/tmp \
    PYTHONPATH=/app \
    MODEL_DIR=/app/models \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
EXPOSE 8000

FROM serve AS train
USER 0
COPY --from=train-environment /added/ /
COPY training /app/training
RUN python -m compileall -q /app
ENV MLFLOW_DISABLE_TELEMETRY=true \
    MPLCONFIGDIR=/tmp/matplotlib \
    GIT_PYTHON_REFRESH=quiet
USER 10001:10001

FROM serve AS serve-boost
USER 0
COPY --from=boost-environment /added/ /
USER 10001:10001

FROM train AS train-boost
USER 0
COPY --from=boost-environment /added/ /
USER 10001:10001

# The last stage is what a plain `docker build .` makes.
FROM serve
