# CPU:  docker build -t brainseg_jax .
# CUDA: docker build -t brainseg_jax:cuda --build-arg EXTRAS=cuda12,dicom,export .   and   docker run --gpus all ...
# Run:  docker run --rm -v "$PWD:/work" brainseg_jax brainseg-predict --input=scans --output=masks
FROM python:3.11-slim-bookworm

ARG EXTRAS=train,dicom,export

WORKDIR /src
COPY pyproject.toml README.md constraints.txt ./
COPY brainseg_jax ./brainseg_jax
COPY configs ./configs
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]" \
    && rm -rf build ./*.egg-info \
    && useradd --create-home --uid 1000 brainseg \
    && mkdir /work && chown 1000 /work

USER 1000
WORKDIR /work
CMD ["brainseg-train", "--help"]
