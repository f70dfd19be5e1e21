"""Groups that a step neither changes nor reads lie in the host's memory."""

from tests.train import idle


def test_idle_groups_lie_on_the_host_and_nothing_else_changes(tmp_path):
    idle.check(tmp_path)
