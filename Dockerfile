# The quickstart in a container: docker build -t robustkt . && docker run --rm robustkt
# BASE may be pinned by digest: --build-arg BASE=python:3.12-slim@sha256:…
ARG BASE=python:3.12-slim
FROM ${BASE}

WORKDIR /opt/robustkt
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# the locked dependencies first: they change less often than the code
COPY requirements.lock ./
RUN python -m pip install --no-cache-dir --require-hashes --requirement requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY robustkt ./robustkt
RUN python -m pip install --no-cache-dir --no-build-isolation --no-deps .

RUN useradd --create-home --uid 1000 robust
USER robust
WORKDIR /home/robust
ENTRYPOINT ["robustkt"]
CMD ["quickstart"]
