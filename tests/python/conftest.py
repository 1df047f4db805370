import pytest

from support import new_client


@pytest.fixture(scope="session")
def client():
    return new_client()
