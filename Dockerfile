# lm_retrieval as a server, CPU only:
#
#     docker build -t lm_retrieval --build-arg TORCH_INDEX=URL .
#     docker run --rm -p 127.0.0.1:8000:8000 -e LMR_API_KEY=secret -v "$PWD/indexes:/data/indexes:ro" lm_retrieval

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# On Linux the usual torch brings gigabytes of CUDA along. PyTorch has an index of wheels for CPUs: its installation page,
# https://pytorch.org/get-started/locally, names it under "CPU". A mirror of your own does as well.
ARG TORCH_INDEX
RUN test -n "$TORCH_INDEX" || { echo "give --build-arg TORCH_INDEX=URL: PyTorch's index of CPU wheels"; exit 1; }
RUN python -m venv /opt/lmr
ENV PATH=/opt/lmr/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt ./
# a layer of its own: it changes only when constraints.txt does
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt --no-deps --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY lm_retrieval lm_retrieval
COPY checkpoints checkpoints
COPY corpora corpora
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt '.[serve,ui]'

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title=lm_retrieval org.opencontainers.image.licenses=MIT
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin lmr \
    && install --directory --owner lmr --group lmr /data /data/indexes /data/checkpoints /data/corpora
COPY --from=build /opt/lmr /opt/lmr
ENV PATH=/opt/lmr/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER lmr
WORKDIR /data
VOLUME ["/data/indexes", "/data/checkpoints", "/data/corpora"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('PORT', '8000') + '/health', timeout=4)"]
CMD ["lmr", "serve", "--host", "0.0.0.0"]
