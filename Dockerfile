# WikiLLM and what it needs, for a user that is not root. The base is a build argument:
#   docker build -t wikillm .
#   docker build -t wikillm-cuda --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 .
# Smoke test, a Wikipedia dump to a trained model: docker run --rm wikillm make demo
# Training: docker run --rm --gpus all --shm-size 8g wikillm-cuda deepspeed train.py ...
ARG BASE=ubuntu:24.04
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The versions are those of the base's release. g++ and Python's headers serve offload and torch.compile.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        g++ git make openssh-client python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --shell /bin/bash --uid 10001 wikillm \
    && install -d -o wikillm -g wikillm /opt/wikillm
USER 10001:10001
WORKDIR /opt/wikillm
COPY --chown=wikillm:wikillm . .

# The index that torch comes from; empty: a CPU build, or with a CUDA base the default of pip.
ARG TORCH_INDEX=
RUN TORCH_INDEX="${TORCH_INDEX}" make env
ENV PATH="/opt/wikillm/.venv/bin:${PATH}"
CMD ["wikillm", "--help"]
