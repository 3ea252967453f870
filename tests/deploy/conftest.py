from tests.buffer.conftest import broker

__all__ = ["broker"]
