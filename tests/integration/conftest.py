"""One Ray session for all tests that need one."""

from collections.abc import Iterator

import pytest

from pipelines.cluster.session import session


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray on this machine's CPUs, started once; its workers and its driver use a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with session():
            yield
