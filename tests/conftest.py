"""What several test files share: the real images beside the project, where they are."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout, from which the README's commands are run."""
    return REPOSITORY


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    """Real CIFAR-10 in parquet; the test is skipped where it is not at hand."""
    return _folder("cifar10_jpeg")


@pytest.fixture(scope="session")
def imagenet_folder() -> Path:
    """160 real ImageNet photographs in parquet; the test is skipped where they are not at hand."""
    return _folder("imagenet_sample")


def _folder(name: str) -> Path:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"no {name} data beside the project")
    return folder
