"""Models behind one form of request, answer and error. No Beam here; usable alone:

    from llmdo.backends import connect

    with connect("workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast") as model:
        print(model.execute("What is the capital of France?", max_tokens=20).text)

``connect_async`` gives the same as coroutines, for a program with a loop of its own.
"""

from llmdo.backends.backend import Backend
from llmdo.backends.providers import connect as connect_async
from llmdo.backends.providers import split_model
from llmdo.backends.sync import Model, connect

__all__ = ["Backend", "Model", "connect", "connect_async", "split_model"]
