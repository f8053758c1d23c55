"""What errors of Redis mean."""

from __future__ import annotations

import pytest

from wsmiddleware.backplane.trouble import Remedy, remedy_for


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("READONLY You can't write against a read only replica.", Remedy.LEAVE),
        ("MASTERDOWN Link with MASTER is down", Remedy.LEAVE),
        ("MOVED 3999 127.0.0.1:6381", Remedy.LEAVE),
        ("LOADING Redis is loading the dataset in memory", Remedy.WAIT),
        ("CLUSTERDOWN The cluster is down", Remedy.WAIT),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Remedy.WAIT),
        ("BUSY Redis is busy running a script.", Remedy.WAIT),
        ("MISCONF Redis is configured to save RDB snapshots", Remedy.WAIT),
        ("ERR max number of clients reached", Remedy.WAIT),
        ("OOM command not allowed when used memory > 'maxmemory'.", Remedy.FAIL),
        ("NOREPLICAS Not enough good replicas to write.", Remedy.FAIL),
        ("NOAUTH Authentication required.", Remedy.CALL),
        ("WRONGPASS invalid username-password pair or user is disabled.", Remedy.CALL),
        ("NOPERM this user has no permissions to run the 'evalsha' command", Remedy.CALL),
        ("NOSCRIPT No matching script. Please use EVAL.", Remedy.LOAD),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", Remedy.FAIL),
        ("ERR unknown command", Remedy.FAIL),
        ("", Remedy.FAIL),
        # Redis 6.2, within a script
        (
            "ERR Error running script (call to f_0123): @user_script:41: @user_script: 41: "
            "-OOM command not allowed when used memory > 'maxmemory'.",
            Remedy.FAIL,
        ),
        (
            "ERR Error running script (call to f_0123): @user_script:41: @user_script: 41: "
            "-READONLY You can't write against a read only replica.",
            Remedy.LEAVE,
        ),
        # Redis 7, within a script
        (
            "READONLY You can't write against a read only replica. script: 01, on @user_script:41.",
            Remedy.LEAVE,
        ),
    ],
)
def test_remedy(text: str, remedy: Remedy) -> None:
    assert remedy_for(text) is remedy
