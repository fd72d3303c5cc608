"""Third-party libraries: eager's bits, and co-executed. `python -m tests.ecosystem` has times."""

import pytest

from terra_tf.testing import assert_matches_eager
from tests.ecosystem.programs import PROGRAMS

# These libraries warn of themselves: of old NumPy names, of Keras' versions.
pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("name", PROGRAMS)
def test_library(name):
    (step,) = assert_matches_eager(PROGRAMS[name], num_steps=12)
    stats = step.stats()
    assert stats.phase == "co-execution", stats
    assert stats.co_executed_steps >= 9, stats
