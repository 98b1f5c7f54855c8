"""What a user can mend is one line, an ordinary exception in Python, and, of a disk, an OSError with its number."""

from __future__ import annotations

import errno
import pickle

import pytest

from kdstream.errors import DiskError, UserError


def test_a_disk_error_is_caught_as_either_kind_and_keeps_its_line():
    for kind in (UserError, OSError, ValueError):
        with pytest.raises(kind, match=r"^cannot write a: full$"):
            raise DiskError("cannot write a: full", errno.ENOSPC)
    error = DiskError("cannot write a: full", errno.ENOSPC)
    assert (str(error), error.errno) == ("cannot write a: full", errno.ENOSPC)
    assert DiskError("cannot write a").errno is None
    assert not isinstance(UserError("no"), OSError)


def test_errors_come_back_from_other_processes():
    for error in (UserError("wrong: a"), DiskError("cannot write a: full", errno.ENOSPC)):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back)) == (type(error), str(error))
