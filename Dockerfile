# nnU-Net, this package and their commands, built from the checkout:
#   docker build -t nnunetv2-plgcl .                               for the CPU
#   docker build -t nnunetv2-plgcl:cuda --build-arg TORCH=cu126 .  for a GPU
# TORCH names one of PyTorch's builds: cpu, cu126, ...
FROM python:3.12-slim
ARG TORCH=cpu

# A C compiler: torch.compile, which nnU-Net uses on a GPU, builds its kernels with it.
# Versions are those of the day: the base image moves on, too.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch --index-url "https://download.pytorch.org/whl/${TORCH}"

COPY . /opt/nnunetv2-plgcl
RUN pip install --no-cache-dir /opt/nnunetv2-plgcl

RUN useradd --create-home --uid 1000 nnunet && mkdir /data && chown nnunet /data
USER 1000
WORKDIR /data
ENV nnUNet_raw=/data/nnUNet_raw \
    nnUNet_preprocessed=/data/nnUNet_preprocessed \
    nnUNet_results=/data/nnUNet_results
CMD ["nnUNetv2_plgcl_demo", "--help"]
