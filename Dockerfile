# Workers of llmdo: for Dataflow, for Flink with --environment-type DOCKER, and for `llmdo` itself on Kubernetes.
#   docker build -t REGISTRY/llmdo:0.1.0 . && docker push REGISTRY/llmdo:0.1.0
# Settings and secrets are given when it runs; they are never in the image.
FROM apache/beam_python3.11_sdk:2.77.0

LABEL org.opencontainers.image.title="llmdo" \
      org.opencontainers.image.description="Answers files of prompts in object storage: Beam workers and command" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.base.name="docker.io/apache/beam_python3.11_sdk:2.77.0"

# Otherwise Beam's boot makes a virtual environment below /opt/apache, where only root may write, at each start.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 \
    PYTHONUNBUFFERED=1 \
    LLMDO_PRISM=/opt/llmdo/prism

WORKDIR /opt/llmdo
COPY requirements.txt ./
RUN pip install --no-cache-dir --require-hashes --requirement requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY llmdo/ llmdo/
COPY backends/ backends/
COPY local/ local/
COPY pipelines/ pipelines/
COPY runners/ runners/
COPY storage/ storage/
COPY transforms/ transforms/
RUN pip install --no-cache-dir --no-deps . \
    && useradd --system --uid 10001 --create-home llmdo

# Built now, so that no pod needs Go, or minutes, to start.
RUN export XDG_CACHE_HOME=/tmp/cache \
    && unset LLMDO_PRISM \
    && install -m 755 "$(python -m llmdo.runners.prism)" /opt/llmdo/prism \
    && rm -rf /tmp/cache

USER 10001
# Beam's boot writes the job's options into its working directory. It stays the ENTRYPOINT, from the base image.
WORKDIR /home/llmdo
# What a worker does first: an image that lacks something fails to build. Google's client comes with the base image.
RUN python -c "import llmdo.pipelines.jsonl, llmdo.runners.workers.settings, llmdo.runners.cli.main" \
    && python -c "import google.cloud.secretmanager"
