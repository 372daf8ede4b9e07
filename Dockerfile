# The REST and MCP service, for one core and 2 GB of memory; data is in /data:
#
#   docker build -t memometer .
#   docker run --cpus 1 --memory 2g -v memories:/data memometer memometer token ada
#   docker run --cpus 1 --memory 2g -v memories:/data -p 8765:8765 memometer
FROM python:3.12-slim

ENV OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MALLOC_ARENA_MAX=2 PYTHONUNBUFFERED=1 \
    MEMOMETER_URL=sqlite:////data/memory.db EMBEDDED_MODELS_DIR=/models

WORKDIR /app
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[eval,service,mcp]' \
    && python -c "from memometer.models import encoders; encoders.load(cached=False)" \
    && useradd --create-home memories && mkdir /data && chown memories /data

USER memories
VOLUME /data
EXPOSE 8765
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/readyz')"]
# exec form, so that SIGTERM reaches the service and it finishes its requests
CMD ["memometer", "serve", "--host", "0.0.0.0"]
