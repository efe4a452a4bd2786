from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from box_files import TRUE


@pytest.fixture
def images(tmp_path: Path) -> pd.DataFrame:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in TRUE:
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(folder / name)
    return pd.DataFrame(
        {
            "image": [f"images/{name}" for name in TRUE],
            "path": [str(folder / name) for name in TRUE],
        }
    )
