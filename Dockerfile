# robustkt in a container; docs/containers.md says how to build, pin and run it.
#   VARIANT  cuda, or cpu: the same torch without the parts of CUDA that it does not load on a machine without a GPU
#   BASE     a slim Python 3.11 or newer; pinned: python:3.11-slim-bookworm@sha256:…
#   LOCK     the locked dependencies that are installed; requirements.lock has the extras and the tools of development too
#   REVISION the commit that this is built from, for labels and run records (`make image` names it)
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /build
COPY requirements-build.lock ./
RUN python3 -m venv /opt/build \
 && /opt/build/bin/python -m pip install --no-cache-dir --require-hashes --requirement requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY robustkt ./robustkt
RUN /opt/build/bin/python -m pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels .

FROM ${BASE} AS dependencies
ARG LOCK=requirements-runtime.lock
COPY ${LOCK} /opt/locked/
# the venv has no pip of its own: nothing is installed into the image once it is made
RUN python3 -m venv --without-pip /opt/venv \
 && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes --requirement "/opt/locked/${LOCK}"

FROM dependencies AS trimmed
ARG VARIANT=cuda
COPY containers/trim.py /opt/trim.py
RUN case "${VARIANT}" in \
      cuda) ;; \
      cpu) python3 -m pip --python /opt/venv/bin/python uninstall --yes triton && /opt/venv/bin/python /opt/trim.py ;; \
      *) echo "VARIANT is cuda or cpu, not ${VARIANT}" >&2; exit 2 ;; \
    esac

# a layer of its own, of a few megabytes: another version of robustkt is not another four gigabytes to send
FROM dependencies AS package
COPY --from=wheel /wheels /wheels
RUN python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-index --no-deps --prefix /opt/package /wheels/*.whl
COPY containers/describe.py /opt/describe.py
ARG BASE
ARG VARIANT=cuda
ARG LOCK=requirements-runtime.lock
ARG REVISION=
RUN python3 /opt/describe.py /opt/package "/opt/locked/${LOCK}" "variant=${VARIANT}" "base=${BASE}" "revision=${REVISION}"

FROM ${BASE}
COPY --from=trimmed /opt/venv /opt/venv
RUN useradd --uid 1000 --no-create-home --home-dir /tmp robust \
 && install --directory --owner robust --group robust /registry /data /work
# HOME is a folder that any user may write to: `--user` works with every number, and --read-only with a tmpfs on /tmp
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    ROBUSTKT_REGISTRY=/registry \
    ROBUSTKT_DATA=/data
COPY --from=package /opt/package /opt/venv
ARG BASE
ARG VARIANT=cuda
ARG REVISION=
LABEL org.opencontainers.image.title="robustkt" \
      org.opencontainers.image.description="Carry the robustness of image classifiers from each generation to the next" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/robustkt/robustkt" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}" \
      io.github.robustkt.variant="${VARIANT}"
USER 1000:1000
WORKDIR /work
VOLUME ["/registry", "/data"]
ENTRYPOINT ["robustkt"]
CMD ["--help"]
