# medunet on a CUDA GPU:
#
#   docker build -t medunet .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -v "$PWD:/data" medunet train dataset -o run
#
# The base is PyTorch's own image of the torch version pinned in constraints.txt, with the CUDA version (13.0) that
# torch 2.13.0 has on the Python package registry, and a cuDNN that belongs to it; CUDA 13 needs an NVIDIA driver of
# branch 580 or newer. "runtime" leaves out the compilers. This file is linted; it was written where no container
# engine is at hand, so building it is not part of the tests.
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime

LABEL org.opencontainers.image.title="medunet" \
      org.opencontainers.image.description="From a folder of scans to a trained U-Net, segmentations and scores" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime"

# The image's Python belongs to its system package manager, which this image has no other use for.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /opt/medunet

# First what changes seldom. torch is in the base already; this line only fails where it should not be.
COPY constraints.txt ./
RUN python -m pip install --index-url https://download.pytorch.org/whl/cu130 "$(grep '^torch==' constraints.txt)"

COPY pyproject.toml README.md LICENSE ./
COPY medunet ./medunet
COPY configs ./configs
RUN python -m pip install --constraint constraints.txt ".[demo]" \
    && groupadd --gid 10001 medunet \
    && useradd --create-home --uid 10001 --gid 10001 medunet \
    && install --directory --owner=medunet --group=medunet /data

# Any --user can run it: caches go to a place that everybody may write to.
ENV HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["medunet"]
CMD ["--help"]
