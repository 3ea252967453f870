import pytest

from tests.browser import Visits, violations
from tests.server.running import Running

pytestmark = pytest.mark.browser


def test_it_opens(running: Running, visit: Visits) -> None:
    page = visit(f"{running.url}/dashboard")
    page.get_by_role("heading", name="Apprentice").wait_for()
    assert violations(page) == []
