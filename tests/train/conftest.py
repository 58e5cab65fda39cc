"""What the tests of training share."""

import numpy as np
import pytest
from processes import images


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """48 images of 40 px in a file, as an unlabelled set."""
    path = tmp_path_factory.mktemp("photos") / "photos.npz"
    np.savez(path, images=images())
    return path
