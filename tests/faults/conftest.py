from tests.integration.conftest import cloud

__all__ = ["cloud"]
