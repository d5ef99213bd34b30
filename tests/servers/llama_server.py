"""llama.cpp's own server with the embedded weights, on a port of this machine: ``llama_server.py PORT [embeddings]``.

The key is LLAMA_API_KEY.
"""

import os
import signal
import sys

from llmdo.backends.llama_cpp import files as llama_files

CONTEXT = 1024  # tokens, for each of two requests at a time


def main(port: int, embeddings: bool) -> None:
    """Serves until the process ends."""
    library = llama_files.library()
    params = library.CommonParams()
    params.model.path = str(llama_files.weights())
    params.port = port
    params.n_parallel, params.n_ctx = 2, 2 * CONTEXT
    params.cpuparams.n_threads = 2
    params.verbosity = -1
    params.warmup = False
    params.cache_ram_mib = 0
    params.fit_params = False
    params.api_keys = [os.environ["LLAMA_API_KEY"]]
    params.ui = False
    params.embedding = embeddings
    if embeddings:  # else a vector a token, which is not what OpenAI's API means
        params.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    serving = library.Server(params)
    print(serving.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), "embeddings" in sys.argv[2:])
