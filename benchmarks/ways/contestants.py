"""The ways to call a model that ``benchmarks.infer`` compares: llmdo's, those of a script or of Beam, other tools."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Way:
    """One way to call.

    Attributes:
        module: runs in a process of its own; see ``benchmarks.ways.measuring``.
        most_calls: fewer for ways of others, some of which would take many minutes.
        requirements: of a rival, for an environment of its own; ``build``: variables for installing them.
    """

    name: str
    module: str
    most_calls: int = 10_000
    requirements: tuple[str, ...] = ()
    build: dict[str, str] = field(default_factory=dict)


FEW_CALLS = 2_000
YARDSTICK = Way("bare aiohttp", "ways.bare_aiohttp")
LLMDO_RUN = Way("llmdo run", "ways.beam")
WAYS = (
    YARDSTICK,
    LLMDO_RUN,
    Way("engine", "ways.engine"),
    Way("engine, learning", "ways.learning_engine"),
    Way("plain httpx", "ways.plain_httpx", most_calls=FEW_CALLS),
    Way("Beam RunInference", "ways.run_inference", most_calls=FEW_CALLS),
)
RIVALS = (
    Way(
        "polar_llama",
        "rivals.polar_llama",
        most_calls=FEW_CALLS,
        requirements=("polar_llama==0.9.1", "polars==2.1.0"),
        # Where there is no wheel: its authors' settings, which optimise all crates together, compile far longer.
        build={
            "CARGO_PROFILE_RELEASE_LTO": "off",
            "CARGO_PROFILE_RELEASE_OPT_LEVEL": "2",
            "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
        },
    ),
    Way(
        "Curator",
        "rivals.curator",
        most_calls=FEW_CALLS,
        requirements=("bespokelabs-curator==0.1.31", "litellm==1.83.7", "aiohttp==3.13.5"),
    ),
    Way(
        "async-batch-llm",
        "rivals.async_batch_llm",
        most_calls=FEW_CALLS,
        requirements=("async-batch-llm==0.28.0", "openai==3.57.0"),
    ),
)
