# syntax=docker/dockerfile:1
FROM python:3.11-slim-bookworm AS build
# Package index with a CPU build of torch; empty: pip's default. The image's history shows it: no secrets.
ARG TORCH_INDEX=""
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/segcal
WORKDIR /src
# Dependencies first: they change less often than the sources.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app/__init__.py app/__init__.py
RUN /opt/segcal/bin/pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
RUN /opt/segcal/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print('\n'.join(p['dependencies']))" > /tmp/requirements.txt \
 && /opt/segcal/bin/pip install --constraint constraints.txt --requirement /tmp/requirements.txt
COPY app app
RUN case ",$EXTRAS," in *,gpu,*) /opt/segcal/bin/python -c "from app.inference.cuda import main; main()" ;; esac
RUN /opt/segcal/bin/pip install --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"
# Compiles the kernels for the building processor; another processor type compiles them at start.
WORKDIR /
RUN NUMBA_CACHE_DIR=/opt/segcal/kernels /opt/segcal/bin/python -c "from app.serving.warmup import main; main()"

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 segcal && useradd --uid 10001 --gid segcal --no-create-home segcal
COPY --from=build /opt/segcal /opt/segcal
WORKDIR /srv
COPY models models
COPY --chown=segcal:segcal calibration_artifacts calibration_artifacts
ENV PATH=/opt/segcal/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/tmp/kernels \
    SEGCAL_MODELS_DIR=/srv/models SEGCAL_ARTIFACTS_DIR=/srv/calibration_artifacts
USER segcal
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --start-interval=1s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
# numba reads its cache only from a writable folder, and the root file system may be read-only.
ENTRYPOINT ["sh", "-c", "cp -r /opt/segcal/kernels /tmp/ 2>/dev/null; exec \"$@\"", "--"]
CMD ["segcal", "serve", "--host", "0.0.0.0", "--port", "8000"]
